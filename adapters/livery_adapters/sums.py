"""Sums over an adapter's weights: how large its tensors are, and the products of its low-rank pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # A [..., rank, in] and B [..., out, rank]


class PairSums(NamedTuple):
    """‖B·A‖² and its bound ‖B‖²·‖A‖², as far as fp32 knows them: infinite or NaN where squares leave its range."""

    product: float
    bound: float


class Sums(Protocol):
    """Computed in fp32 at least, many at once: an engine has kernels for it."""

    def squares(self, tensors: Sequence[Tensor]) -> list[float]:
        """‖tensor‖² of each; not finite where a number isn't, or where squares leave fp32's range."""
        ...

    def low_rank(self, pairs: Sequence[Pair]) -> list[PairSums]:
        """Of each pair, by Gram matrices: ‖BA‖² = Σ (BᵀB) ⊙ (AAᵀ), in rank² · (in + out) products."""
        ...


class TorchSums:
    """On any device that torch knows; experts of a pair are summed up."""

    def squares(self, tensors: Sequence[Tensor]) -> list[float]:
        return [float(torch.linalg.vector_norm(tensor, dtype=torch.float32)) ** 2 for tensor in tensors]

    def low_rank(self, pairs: Sequence[Pair]) -> list[PairSums]:
        return [_pair_sums(a, b) for a, b in pairs]


def _pair_sums(a: Tensor, b: Tensor) -> PairSums:
    gram_a, gram_b = _gram(a), _gram(b.mT)
    traces = [np.trace(gram, axis1=-2, axis2=-1, dtype=np.float64) for gram in (gram_a, gram_b)]
    return PairSums(float(np.vdot(gram_a, gram_b)), float(np.sum(traces[0] * traces[1])))


def _gram(rows: Tensor) -> npt.NDArray[np.floating]:
    """rows · rowsᵀ. NumPy's product of a matrix with its own transpose takes half the work of torch's."""
    matrix = rows.to(dtype=torch.promote_types(rows.dtype, torch.float32)).cpu().numpy()
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        gram: npt.NDArray[np.floating] = matrix @ matrix.swapaxes(-2, -1)
    return gram
