"""Several adapters merged ahead into one plain LoRA adapter, which PEFT and every server of LoRA can read.

    report = merge(
        [MergePart(pirate, 1.0), MergePart(haiku, 0.5)], base, "ties", density=0.2, rank=32, seed=0, out=Path("both")
    )
    report.error    # ‖ΔW - B·A‖ / ‖ΔW‖ over all modules

One module is worked on at a time, and written before the next one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from livery_adapters.approximate import factorise, truncate
from livery_adapters.canonical import (
    BaseWeights,
    CanonicalAdapter,
    Delta,
    EmbeddingChange,
    ExpertsChange,
    LinearChange,
    LowRank,
    tensors_of,
)
from livery_adapters.composition import added_up
from livery_adapters.layout import Task
from livery_adapters.making.combine import Method, combined
from livery_adapters.making.lora_writer import ITEMSIZE, LoraWriter, Target, shapes_of
from livery_adapters.measure import BaseNorms, as_low_rank, dense, effective, joined, low_rank_norm, rank_of, wide
from livery_adapters.refusal import TAKEN_IN, AdapterRefused, Limits
from livery_adapters.tasks import HEAD
from livery_adapters.tensor_file import WEIGHTS_NAME

Change = LinearChange | EmbeddingChange | ExpertsChange
Progress = Callable[[int, int], None]  # modules done, modules in all


@dataclass(frozen=True, slots=True)
class MergePart:
    """One parent and its weight."""

    adapter: CanonicalAdapter
    weight: float


@dataclass(frozen=True, slots=True)
class ModuleMerge:
    """What became of one module: its rank, ‖B·A‖/‖W‖, and the error ‖ΔW - B·A‖/‖ΔW‖ against the method's own ΔW."""

    rank: int
    relative: float
    error: float


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was merged and how well the rank holds it. `parents` are (digest, weight), sorted by digest.

    `error` is that over all modules together. Both count from the parents as they are applied here: what was
    approximated in them already isn't in it.
    """

    parents: tuple[tuple[str, float], ...]
    method: Method
    density: float
    rank: int | None
    seed: int
    modules: Mapping[str, ModuleMerge]
    error: float


def merge(
    parts: Sequence[MergePart],
    base: BaseWeights,
    method: Method,
    *,
    density: float = 1.0,
    rank: int | None = None,
    seed: int = 0,
    out: Path,
    base_name: str | None = None,
    task: Task = "generate",
    limits: Limits = TAKEN_IN,
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Merge `parts`, all converted for `base`, into the new directory `out`. The formulas are in making.combine.

    "linear" with `rank` None is exact: the pairs lie side by side, at the sum of their ranks. With a rank, and for the
    other methods always, each module's ΔW is factorised to `rank`, or else to the sum of its parts' ranks. A part that
    changes a weight otherwise than by adding (DoRA, OFT, IA3) is merged by the difference it makes, which needs a
    rank. `density` is the share of entries that TIES and DARE keep. The same arguments write the same bytes with the
    same version of torch; `seed` decides DARE's draws. Weights of the same adapter add up. `task` is the
    parts': what embeds is written for the model without its head, on which it is trained, if it changes no more.

    Raises AdapterRefused: bad_merge (arguments that make no sense together), not_mergeable (biases and other
    parameters, which LoRA has no place for), output_exists; rank_over_limit, too_large where it would be over `limits`,
    before anything is merged.
    """
    _check_arguments(parts, method, density, rank)
    parts = _summed(parts)
    plan = _plan(parts, base)
    settings = _Settings(method, density, rank, seed)
    for module in plan:
        _check_module(module, settings)
    targets = [_target(module, settings) for module in plan]
    _check_limits(targets, limits)
    parents = tuple((part.adapter.digest, part.weight) for part in parts)
    facts = {"parents": parents, "method": method, "density": density, "rank": rank, "seed": seed}
    modules: dict[str, ModuleMerge] = {}
    lost = whole = 0.0
    norms = BaseNorms(base)
    shapes = [base.shapes.modules.get(module.path) for module in plan]
    with LoraWriter(
        out,
        _named(targets, task, base),
        base_name=base_name,
        input_first=any(shape is not None and shape.input_first for shape in shapes),
        metadata={"merge": json.dumps(facts)},
        task=task,
    ) as writer:
        for done, module in enumerate(plan):
            progress(done, len(plan))
            result = _merged(module, settings, base)
            writer.write(result.a, result.b)
            modules[module.path] = result.told(norms)
            lost, whole = lost + result.lost, whole + result.whole
    progress(len(plan), len(plan))
    return MergeReport(parents, method, density, rank, seed, modules, math.sqrt(lost / whole) if whole else 0.0)


@dataclass(frozen=True, slots=True)
class _Settings:
    method: Method
    density: float
    rank: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class _Share:
    """What one parent does to a module."""

    digest: str
    weight: float
    change: Change

    @property
    def additive(self) -> bool:
        return isinstance(self.change, ExpertsChange) or self.change.is_additive

    def deltas(self, expert: int) -> tuple[Delta, ...]:
        """The ΔW's of an additive change, as [out_features, in_features]."""
        change = self.change
        if isinstance(change, ExpertsChange):
            return (LowRank(change.a[expert], change.b[expert], change.scale),)
        if isinstance(change, EmbeddingChange):
            return (change.delta,) if change.delta else ()
        return change.deltas

    def pairs(self, expert: int) -> list[LowRank] | None:
        """weight · ΔW as pairs, or None where it has no such form."""
        if not self.additive:
            return None
        found = [as_low_rank(delta) for delta in self.deltas(expert)]
        pairs = [replace(pair, scale=pair.scale * self.weight) for pair in found if pair is not None]
        return pairs if len(pairs) == len(found) else None

    def dense(self, expert: int, path: str, base: BaseWeights) -> Tensor:
        """ΔW [out_features, in_features], fp32, in memory of its own."""
        if self.additive:
            first, *others = self.deltas(expert)
            return sum((dense(delta) for delta in others), dense(first))
        weight = base.weight(path)
        difference = (effective(self.change, weight)[0] - wide(weight)).cpu()
        return difference.T.contiguous() if isinstance(self.change, EmbeddingChange) else difference


@dataclass(frozen=True, slots=True)
class _Module:
    path: str
    kind: Literal["linear", "embedding", "experts"]
    in_features: int
    out_features: int
    experts: int
    shares: tuple[_Share, ...]

    def pairs(self, expert: int) -> list[LowRank] | None:
        """Σ weight · ΔW as pairs, if every share has that form."""
        found = [share.pairs(expert) for share in self.shares]
        return None if None in found else [pair for pairs in found if pairs is not None for pair in pairs]


@dataclass(frozen=True, slots=True)
class _Result:
    """[rank, in] and [out, rank], experts stacked in front; the squared norms of what was lost, and of ΔW."""

    module: _Module
    a: Tensor
    b: Tensor
    lost: float
    whole: float

    def told(self, norms: BaseNorms) -> ModuleMerge:
        path = self.module.path
        size = norms.parameter(path) if self.module.kind == "experts" else norms.module(path)
        kept = math.sqrt(max(self.whole - self.lost, 0.0))
        error = math.sqrt(self.lost / self.whole) if self.whole else 0.0
        return ModuleMerge(int(self.a.shape[-2]), kept / size if size else float(kept > 0), error)


def _summed(parts: Sequence[MergePart]) -> list[MergePart]:
    by_digest = {part.adapter.digest: part.adapter for part in parts}
    return [
        MergePart(by_digest[digest], weight) for digest, weight in added_up((p.adapter.digest, p.weight) for p in parts)
    ]


def _plan(parts: Sequence[MergePart], base: BaseWeights) -> list[_Module]:
    shares: dict[tuple[str, Literal["linear", "embedding", "experts"]], list[_Share]] = {}
    for part in parts:
        adapter = part.adapter
        for path, parameters in adapter.plain.items():
            raise _not_mergeable(adapter, path, f"replaces parameters ({', '.join(parameters)})")
        if adapter.head is not None:
            raise _not_mergeable(adapter, HEAD, "is a classifier and brings the head")
        for path, linear in adapter.linears.items():
            if linear.added is not None:
                raise _not_mergeable(adapter, path, "has tokens of its own behind those")
            if linear.bias is not None:
                raise _not_mergeable(adapter, path, "changes the bias")
            if any(True for _ in tensors_of(linear)):
                shares.setdefault((path, "linear"), []).append(_Share(adapter.digest, part.weight, linear))
        for path, embedding in adapter.embeddings.items():
            if embedding.added is not None:
                raise _not_mergeable(adapter, path, "has tokens of its own behind those")
            shares.setdefault((path, "embedding"), []).append(_Share(adapter.digest, part.weight, embedding))
        for path, experts in adapter.experts.items():
            shares.setdefault((path, "experts"), []).append(_Share(adapter.digest, part.weight, experts))
    if not shares:
        raise AdapterRefused("bad_merge", "nothing is left to merge: the weights of all adapters come to zero")
    return [_module(path, kind, tuple(found), base) for (path, kind), found in sorted(shares.items())]


def _module(
    path: str, kind: Literal["linear", "embedding", "experts"], shares: tuple[_Share, ...], base: BaseWeights
) -> _Module:
    if kind == "experts":
        stack = base.shapes.experts[path]
        return _Module(path, kind, stack.in_features, stack.out_features, stack.experts, shares)
    shape = base.shapes.modules[path]
    return _Module(path, kind, shape.in_features, shape.out_features, 1, shares)


def _rank(module: _Module, settings: _Settings) -> int:
    """The rank that `_merged` gives this module: known ahead, as the file's header comes first."""
    side = min(module.in_features, module.out_features)
    natural = sum(rank_of(share.deltas(0)) if share.additive else side for share in module.shares)
    if settings.method == "linear" and module.pairs(0) is not None and natural <= (settings.rank or natural):
        return natural
    return min(settings.rank or natural, side)


def _target(module: _Module, settings: _Settings) -> Target:
    rank = _rank(module, settings)
    return Target(module.path, module.kind, rank, module.in_features, module.out_features, module.experts)


def _named(targets: Sequence[Target], task: Task, base: BaseWeights) -> list[Target]:
    """The modules by the names that PEFT has for them: see `livery_adapters.tasks`."""
    inner = f"{base.shapes.backbone}."
    if task != "embed" or not base.shapes.backbone or not all(target.path.startswith(inner) for target in targets):
        return list(targets)
    return [replace(target, path=target.path.removeprefix(inner)) for target in targets]


def _merged(module: _Module, settings: _Settings, base: BaseWeights) -> _Result:
    rank = _rank(module, settings)
    found = [_matrix(module, expert, rank, settings, base) for expert in range(module.experts)]
    sizes = [_whole(pair, error) for pair, error in found]
    lost = math.fsum(error**2 * size for (_, error), size in zip(found, sizes, strict=True))
    a, b = [pair.a for pair, _ in found], [pair.b for pair, _ in found]
    if module.kind == "experts":
        return _Result(module, torch.stack(a), torch.stack(b), lost, math.fsum(sizes))
    return _Result(module, a[0], b[0], lost, sizes[0])


def _whole(kept: LowRank, error: float) -> float:
    """‖ΔW‖²: what was lost is orthogonal to what was kept."""
    return low_rank_norm(kept) ** 2 / (1 - min(error, 0.999999) ** 2)


def _matrix(module: _Module, expert: int, rank: int, settings: _Settings, base: BaseWeights) -> tuple[LowRank, float]:
    """One matrix's pair, with scale 1, and its error."""
    pairs = module.pairs(expert) if settings.method == "linear" else None
    if pairs is not None:
        pair = joined(pairs)
        return (pair, 0.0) if pair.rank <= rank else truncate(pair, rank)
    deltas = [share.dense(expert, module.path, base) for share in module.shares]
    keys = [f"livery dare 1 {settings.seed} {share.digest} {expert} {module.path}" for share in module.shares]
    weights = [share.weight for share in module.shares]
    return factorise(combined(settings.method, deltas, weights, settings.density, keys), rank)


def _check_arguments(parts: Sequence[MergePart], method: Method, density: float, rank: int | None) -> None:
    if not all(math.isfinite(part.weight) for part in parts):
        raise AdapterRefused("bad_merge", "a weight is not finite; use plain numbers such as 0.5")
    if not 0 < density <= 1:
        raise AdapterRefused("bad_merge", f"density is {density}; it is the share of entries kept, above 0 and up to 1")
    if method == "linear" and density != 1:
        raise AdapterRefused(
            "bad_merge", f"density is {density} and linear keeps everything; leave it out, or use ties"
        )
    if rank is not None and rank < 1:
        raise AdapterRefused("bad_merge", f"rank is {rank} and must be at least 1; leave it out to keep all ranks")


def _check_module(module: _Module, settings: _Settings) -> None:
    """Without a rank, ΔW has to have one of its own."""
    if settings.rank is not None:
        return
    for share in module.shares:
        if not share.additive or (settings.method == "linear" and share.pairs(0) is None):
            raise AdapterRefused(
                "bad_merge",
                f"adapter {share.digest[:12]} has no low rank of its own for {module.path}; give the rank that the "
                "merged adapter is to have",
            )


def _check_limits(targets: Sequence[Target], limits: Limits) -> None:
    highest = max(targets, key=lambda target: target.rank, default=None)
    if highest is not None and highest.rank > limits.max_rank:
        raise AdapterRefused(
            "rank_over_limit",
            f"{highest.path} would have rank {highest.rank}, and the limit is {limits.max_rank}; give --rank "
            f"{limits.max_rank} or less, or raise --max-rank",
        )
    nbytes = sum(ITEMSIZE * rows * columns for target in targets for rows, columns in shapes_of(target))
    if nbytes > limits.max_weight_bytes:
        raise AdapterRefused(
            "too_large",
            f"{WEIGHTS_NAME} would have {nbytes} bytes, and the limit is {limits.max_weight_bytes}; give a lower "
            "--rank, or raise --max-adapter-bytes",
        )


def _not_mergeable(adapter: CanonicalAdapter, path: str, held: str) -> AdapterRefused:
    return AdapterRefused(
        "not_mergeable",
        f"adapter {adapter.digest[:12]} {held} of {path}, which a LoRA adapter has no place for; leave it out, or "
        "serve it alone",
    )
