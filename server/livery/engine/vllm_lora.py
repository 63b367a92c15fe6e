"""An adapter of any PEFT type as the plain LoRA directory that vLLM reads: what isn't one is refused, never dropped.

vLLM knows B·A of linear modules and nothing else. Its own reader passes over what it doesn't know in silence, so what
it is given is made here, of the canonical form: every pair by its module's full path, the scale folded into B, fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from livery.engine.base import AdapterPart, AdapterRef
from livery.engine.stored import stored_manifest
from livery.engine.vllm_args import RANKS
from livery.engine.vllm_weights import FileWeights
from livery_adapters.approximate import factorise, truncate
from livery_adapters.base_model import BaseModel
from livery_adapters.canonical import CanonicalAdapter, LinearChange, LowRank
from livery_adapters.compose import compose
from livery_adapters.effect import AdapterEffect
from livery_adapters.formats import convert
from livery_adapters.identity import converted_digest
from livery_adapters.making.lora_writer import LoraWriter, Target
from livery_adapters.measure import BaseNorms, as_low_rank, effective, joined, measure, wide
from livery_adapters.refusal import AdapterRefused

NOT_APPLIED = "not_applied_by_engine"
OWN_ENGINE = "serve it with --engine livery"
_HELD = {
    "transform": "an input transform (IA3, OFT)",
    "weight": "a replaced weight",
    "rows": "replaced rows",
    "gain": "an output gain (DoRA, IA3)",
    "bias": "a trained bias",
    "added": "tokens of its own",
}
_DENSE = ("transform", "weight", "rows", "gain")  # what comes to a ΔW all the same, of full rank as a rule


@dataclass(frozen=True, slots=True)
class PlainLora:
    """What vLLM is given of an adapter: pairs of scale 1 by module path, and the errors of approximate ones."""

    pairs: Mapping[str, LowRank]
    errors: Mapping[str, float]

    @property
    def rank(self) -> int:
        return max(pair.rank for pair in self.pairs.values())


@dataclass(frozen=True, slots=True)
class Written:
    """A directory that was written: the highest rank in it, bytes of its weights, what the adapter does to the base."""

    rank: int
    nbytes: int
    effect: AdapterEffect


class LoraDirectories:
    """Writes adapters for one base model. For one thread at a time."""

    def __init__(self, model: Path, base: BaseModel) -> None:
        self._base = base
        self._weights = FileWeights(model, base.shapes)
        # Of quantised files nothing says what a weight amounts to, which a plain LoRA doesn't depend on.
        self._norms = None if self._weights.method else BaseNorms(self._weights)

    def write(self, adapter: AdapterRef, out: Path, most: int) -> Written:
        """Convert into the new directory `out`, at no rank above `most`. Raises AdapterRefused, OSError."""
        parts = [(self._converted(part), part.weight) for part in adapter.parts]
        canonical, weight = parts[0]
        if len(parts) > 1 or weight != 1:
            canonical = compose(parts, adapter.digest)
        approximate = max(part.approximate for part in adapter.parts)
        lora = as_plain_lora(canonical, self._weights, approximate, most)
        if lora.rank > most:
            raise _too_high(adapter.digest, lora.rank, most)
        applied = CanonicalAdapter(
            adapter.digest,
            linears={path: LinearChange((pair,)) for path, pair in lora.pairs.items()},
            errors=lora.errors,
        )
        effect = measure(applied, self._weights, self._norms)
        self._write(lora, out)
        return Written(lora.rank, applied.nbytes, effect)

    def _converted(self, part: AdapterPart) -> CanonicalAdapter:
        manifest = stored_manifest(part, self._base)
        if manifest.invocation:
            raise AdapterRefused(
                NOT_APPLIED,
                "the adapter is one that its prompt switches on (activated LoRA), and vLLM applies adapters to whole "
                f"prompts only; {OWN_ENGINE}",
            )
        converted = convert(Path(part.path), manifest, self._weights, part.approximate)
        return replace(converted, digest=converted_digest(part.digest, part.approximate))

    def _write(self, lora: PlainLora, out: Path) -> None:
        modules = self._base.shapes.modules
        targets = [
            Target(path, "linear", pair.rank, modules[path].in_features, modules[path].out_features)
            for path, pair in lora.pairs.items()
        ]
        with LoraWriter(out, targets, base_name=self._base.name, input_first=False, metadata={}) as writer:
            for pair in lora.pairs.values():
                writer.write(pair.a, pair.b)


def as_plain_lora(adapter: CanonicalAdapter, base: FileWeights, approximate: int, most: int) -> PlainLora:
    """The adapter as pairs, exactly where it is a LoRA; what isn't, or has a rank above `most`, at rank `approximate`.

    With 0 for that nothing is approximated: what isn't a LoRA is refused. Raises AdapterRefused, also for what no ΔW
    of a linear module can say, whatever the rank: biases, embeddings, norms. An approximation is of the rank that was
    asked for or refused, as one above `most` is: a lower one would be another adapter.
    """
    _check_places(adapter)
    pairs: dict[str, LowRank] = {}
    errors = dict(adapter.errors)
    for path, change in adapter.linears.items():
        exact = _exact(change)
        if exact is not None and (exact.rank <= most or not approximate):
            pairs[path] = exact
            continue
        if exact is not None:
            pairs[path], error = truncate(exact, approximate)
        else:
            _check_reducible(adapter, path, change, approximate)
            weight = base.weight(path)
            pairs[path], error = factorise(effective(change, weight)[0] - wide(weight), approximate)
        # Of what had been approximated before, the error counts from there: orthogonal, so they add in squares.
        before = errors.get(path, 0.0)
        errors[path] = math.sqrt(before**2 + (1 - before**2) * error**2)
        if pairs[path].rank > most:
            raise _too_high(adapter.digest, pairs[path].rank, most)
    if not pairs:
        raise AdapterRefused(NOT_APPLIED, f"adapter {adapter.digest[:12]} changes no linear module; {OWN_ENGINE}")
    return PlainLora(pairs, {path: error for path, error in errors.items() if path in pairs})


def _too_high(digest: str, rank: int, most: int) -> AdapterRefused:
    remedy = f"restart the server with --max-lora-rank {rank} or more" if rank <= RANKS[-1] else OWN_ENGINE
    return AdapterRefused(
        NOT_APPLIED,
        f"adapter {digest[:12]} has rank {rank} and vLLM was started for ranks up to {most}; {remedy}, or add it with "
        f"--approximate {most}",
    )


def _exact(change: LinearChange) -> LowRank | None:
    """The change as one pair of scale 1, if that is all there is to it."""
    if not change.is_additive:
        return None
    found = [as_low_rank(delta) for delta in change.deltas]
    pairs = [pair for pair in found if pair is not None]
    return joined(pairs) if len(pairs) == len(found) else None


def _check_places(adapter: CanonicalAdapter) -> None:
    """Raise AdapterRefused for changes where LoRA has no place."""
    held = [f"{path} ({_HELD['added']})" for path, change in adapter.linears.items() if change.added is not None]
    held += [f"{path} ({_HELD['bias']})" for path, change in adapter.linears.items() if change.bias is not None]
    held += [f"{path} (an embedding)" for path in adapter.embeddings]
    held += [f"{path} (experts)" for path in adapter.experts]
    held += [f"{path} (replaced parameters)" for path in adapter.plain]
    held += ["the head of a classifier"] if adapter.head is not None else []
    if held:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise AdapterRefused(
            NOT_APPLIED,
            f"adapter {adapter.digest[:12]} changes {held[0]}{more}, which vLLM is not given: it applies LoRA on "
            f"linear modules; {OWN_ENGINE}",
        )


def _check_reducible(adapter: CanonicalAdapter, path: str, change: LinearChange, approximate: int) -> None:
    if approximate:
        return
    held = " and ".join(_HELD[name] for name in _DENSE if getattr(change, name) is not None) or "a ΔW of full rank"
    raise AdapterRefused(
        NOT_APPLIED,
        f"adapter {adapter.digest[:12]} has {held} for {path}, and vLLM applies plain LoRA only; {OWN_ENGINE}, which "
        "applies it exactly, or add it with --approximate RANK, which factorises the change and tells the error",
    )
