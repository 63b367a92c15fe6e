"""Is every number of an adapter finite, in the file and in what comes of it?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from livery_adapters.canonical import (
    CanonicalAdapter,
    EmbeddingChange,
    ExpertsChange,
    Kronecker,
    LinearChange,
    LowRank,
    SharedBasis,
    tensors_of,
)
from livery_adapters.refusal import AdapterRefused
from livery_adapters.sums import Sums

_LARGEST = torch.finfo(torch.float32).max


class Norms:
    """The Frobenius norms of tensors: one pass over each shows whether all its numbers are finite."""

    def __init__(self, sums: Sums) -> None:
        self._sums = sums
        self._known: dict[int, float] = {}

    def check_file(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a file with a NaN or an infinity in it. Raises AdapterRefused (nonfinite_weights)."""
        named = [(name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point()]
        found = self._sums.squares([tensor for _, tensor in named])
        for (name, tensor), squares in zip(named, found, strict=True):
            norm = self._known[tensor.data_ptr()] = _norm(tensor, squares)
            if not math.isfinite(norm):
                raise AdapterRefused(
                    "nonfinite_weights",
                    f"tensor {name} holds NaN or infinity; training diverged: use an earlier checkpoint",
                )

    def check(self, adapter: CanonicalAdapter) -> None:
        """Refuse an adapter whose numbers overflow fp32 when it is applied. Raises AdapterRefused (overflow).

        ‖B·A‖ is at most ‖B‖·‖A‖: a product of norms that fits fp32 is a bound without computing ΔW.
        """
        for part in (adapter.linears, adapter.embeddings, adapter.experts, adapter.plain):
            for path, change in part.items():
                norms = [self._of(tensor) for tensor in tensors_of(change) if tensor.is_floating_point()]
                bounds = [self._bound(delta) for delta in _deltas(change)]
                if not sum(norms) + sum(bounds) <= _LARGEST:
                    raise AdapterRefused(
                        "overflow",
                        f"{path}: the numbers of the file are finite and what they amount to is not; lower lora_alpha "
                        "or use an earlier checkpoint",
                    )

    def _bound(self, delta: object) -> float:
        match delta:
            case LowRank(a, b, scale) | ExpertsChange(a, b, scale) | Kronecker(a, b, scale):
                return abs(scale) * self._of(a) * self._of(b)
            case SharedBasis(a, b, rank_gain, out_gain, scale):
                return abs(scale) * math.prod(self._of(tensor) for tensor in (a, b, rank_gain, out_gain))
        return 0.0

    def _of(self, tensor: Tensor) -> float:
        # A view of a tensor of the file begins where that does and has at most its norm.
        known = self._known.get(tensor.data_ptr())
        if known is None:
            known = self._known[tensor.data_ptr()] = _norm(tensor, self._sums.squares([tensor])[0])
        return known


def _deltas(change: object) -> tuple[object, ...]:
    match change:
        case LinearChange():
            return change.deltas
        case EmbeddingChange():
            return (change.delta,)
    return (change,)


def _norm(tensor: Tensor, squares: float) -> float:
    """In fp32, and in fp64 only where squares overflow; NaN and infinity go through."""
    return math.sqrt(squares) if squares < math.inf else float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
