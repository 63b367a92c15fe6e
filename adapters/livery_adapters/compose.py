"""The weighted sum of several adapters as one: exact, linear, and only of what merely adds to the weights.

both = compose([(pirate, 1.0), (haiku, 0.5)], composition_digest([...]))
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from livery_adapters.canonical import (
    CanonicalAdapter,
    Delta,
    EmbeddingChange,
    ExpertsChange,
    LinearChange,
    LowRank,
)
from livery_adapters.composition import added_up
from livery_adapters.measure import delta_norm, low_rank_norm, wide
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tasks import HEAD

_HELD = {
    "transform": "an input transform",
    "weight": "a replaced weight",
    "rows": "replaced rows",
    "gain": "an output gain",
    "bias": "a bias",
    "added": "tokens of its own",
}

Parts = Sequence[tuple[CanonicalAdapter, float]]
Change = TypeVar("Change", LowRank, ExpertsChange)


def compose(adapters: Parts, digest: str) -> CanonicalAdapter:
    """Σ weight · adapter, under the name `digest` (that of livery_adapters.composition).

    Weights of the same adapter add up, and one that comes to zero takes no part. The result depends on the order
    of `adapters` in no bit. ΔW's of a linear module stay side by side at their own ranks; those of embeddings and
    experts, where there can be one only, are joined, in fp32 if their scales differ. A single adapter at weight 1 is
    taken as it is, whatever it holds. Raises AdapterRefused (not_additive) where a part does more than add.
    """
    by_digest = {adapter.digest: adapter for adapter, _ in adapters}
    parts = [(by_digest[name], weight) for name, weight in added_up((part.digest, weight) for part, weight in adapters)]
    if len(parts) == 1 and parts[0][1] == 1:
        return replace(parts[0][0], digest=digest)
    for adapter, _ in parts:
        check_additive(adapter)
    linears: dict[str, list[Delta]] = defaultdict(list)
    embeddings: dict[str, list[LowRank]] = defaultdict(list)
    experts: dict[str, list[ExpertsChange]] = defaultdict(list)
    for adapter, weight in parts:
        for path, linear in adapter.linears.items():
            linears[path] += [replace(delta, scale=delta.scale * weight) for delta in linear.deltas]
        for path, embedding in adapter.embeddings.items():
            if embedding.delta is not None:
                embeddings[path].append(replace(embedding.delta, scale=embedding.delta.scale * weight))
        for path, change in adapter.experts.items():
            experts[path].append(replace(change, scale=change.scale * weight))
    composed = CanonicalAdapter(
        digest=digest,
        linears={path: LinearChange(deltas=tuple(deltas)) for path, deltas in linears.items()},
        embeddings={path: EmbeddingChange(delta=_joined(pairs)) for path, pairs in embeddings.items()},
        experts={path: _joined(changes) for path, changes in experts.items()},
    )
    return replace(composed, errors=_errors(parts, composed))


def check_additive(adapter: CanonicalAdapter) -> None:
    """Raise AdapterRefused (not_additive), naming the first module that does more than add ΔW and what it holds."""
    changes: Mapping[str, LinearChange | EmbeddingChange] = {**adapter.linears, **adapter.embeddings}
    for path, change in changes.items():
        held = [text for name, text in _HELD.items() if getattr(change, name, None) is not None]
        if held:
            raise _not_additive(adapter, path, " and ".join(held))
    for path, parameters in adapter.plain.items():
        raise _not_additive(adapter, path, f"replaced parameters ({', '.join(parameters)})")
    if adapter.head is not None:
        raise _not_additive(adapter, HEAD, "a classifier's head")


def _not_additive(adapter: CanonicalAdapter, path: str, held: str) -> AdapterRefused:
    return AdapterRefused(
        "not_additive",
        f"adapter {adapter.digest[:12]} can't be added to others: it holds {held} for {path}, and only adapters that "
        "add to weights (LoRA, LoHa, LoKr, VeRA, AdaLoRA) have a sum; ask for it alone, or merge them ahead into one "
        "of a given rank (livery adapters merge)",
    )


def _joined(parts: Sequence[Change]) -> Change:
    """Their sum as one. Scales that differ go into B: an embedding's A has a column per token and stays as it is."""
    scales = {part.scale for part in parts}
    a = torch.cat([part.a for part in parts], dim=-2)
    b = [part.b if len(scales) == 1 else wide(part.b) * part.scale for part in parts]
    return replace(parts[0], a=a, b=torch.cat(b, dim=-1), scale=scales.pop() if len(scales) == 1 else 1.0)


def _errors(parts: Parts, composed: CanonicalAdapter) -> dict[str, float]:
    """What the parts' approximations cost the sum, at most: Σ |weight| · ‖error‖ over ‖sum‖, never above 1.

    A part's error is orthogonal to what was kept of it, so ‖error‖ = e / √(1 - e²) · ‖kept‖.
    """
    lost: dict[str, float] = defaultdict(float)
    for adapter, weight in parts:
        for path, error in adapter.errors.items():
            kept = _size(adapter, path)
            lost[path] += abs(weight) * (error / math.sqrt(1 - error**2) * kept if error < 1 else math.inf)
    return {path: _ratio(size, _size(composed, path)) for path, size in lost.items()}


def _ratio(lost: float, size: float) -> float:
    return min(lost / size, 1.0) if size else 1.0


def _size(adapter: CanonicalAdapter, path: str) -> float:
    """‖ΔW‖ of one additive module."""
    if path in adapter.linears:
        return delta_norm(adapter.linears[path].deltas)
    if path in adapter.experts:
        return low_rank_norm(adapter.experts[path])
    delta = adapter.embeddings[path].delta if path in adapter.embeddings else None
    return low_rank_norm(delta) if delta else 0.0
