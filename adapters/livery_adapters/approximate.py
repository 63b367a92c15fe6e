"""The nearest change of a given rank, for types that an engine can't apply as they are, with the error it leaves.

pair, error = factorise(delta, rank=32)    # one low-rank pair; error is ‖ΔW - B·A‖ / ‖ΔW‖
pair, error = truncate(pair, rank=8)       # of a pair, without forming ΔW
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from livery_adapters.canonical import LowRank
from livery_adapters.measure import squared_norm, wide

_SMALL = 384  # up to this many rows or columns a full decomposition costs no more
OVERSAMPLED = 16
_POWER_ITERATIONS = 3
_ROWS = 1024  # of the residual, formed at a time


def factorise(delta: Tensor, rank: int) -> tuple[LowRank, float]:
    """The best B·A of at most this rank for ΔW [out_features, in_features], and its relative error.

    Up to a few hundred rows or columns by a full SVD, otherwise by a randomised one (Halko, Martinsson and Tropp,
    2011, algorithm 4.4: a Gaussian sketch, power iterations with orthonormalisation between them), always from the
    same draw: the same ΔW gives the same pair. The error is that of the pair returned, measured, not estimated.
    The singular values are split evenly between the halves; the scale is 1 and the rank exactly min(rank, sides).
    """
    matrix = wide(delta)
    rank = min(_checked(rank), *matrix.shape)
    if min(matrix.shape) <= _SMALL or 4 * (rank + OVERSAMPLED) >= min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        left, values, right = randomised_svd(matrix, rank + OVERSAMPLED)
    root = values[:rank].sqrt()
    pair = LowRank((root[:, None] * right[:rank]).contiguous(), (left[:, :rank] * root).contiguous(), 1.0)
    return pair, relative_error(matrix, pair)


def truncate(pair: LowRank, rank: int) -> tuple[LowRank, float]:
    """The best pair of at most this rank for an existing one, and its relative error; ΔW is never formed.

    Exact SVD of B·A from the QR factorisations of both halves, in fp64; the result is fp32 with scale 1.
    """
    rank = min(_checked(rank), pair.rank, int(pair.a.shape[1]), int(pair.b.shape[0]))
    q_left, r_left = torch.linalg.qr(pair.b.double() * pair.scale)
    q_right, r_right = torch.linalg.qr(pair.a.double().T)
    left, values, right = torch.linalg.svd(r_left @ r_right.T)
    root = values[:rank].sqrt()
    a, b = (root[:, None] * right[:rank]) @ q_right.T, q_left @ left[:, :rank] * root
    total = squared_norm(values)
    error = math.sqrt(squared_norm(values[rank:]) / total) if total else 0.0
    return LowRank(a.float().contiguous(), b.float().contiguous(), 1.0), error


def relative_error(delta: Tensor, pair: LowRank) -> float:
    """‖ΔW - scale · B·A‖ / ‖ΔW‖ for a dense ΔW, formed a block of rows at a time; zero where ΔW is."""
    a, b = wide(pair.a, delta), wide(pair.b, delta) * pair.scale
    blocks = range(0, len(delta), _ROWS)
    left = math.fsum(squared_norm(delta[i : i + _ROWS] - b[i : i + _ROWS] @ a) for i in blocks)
    total = squared_norm(delta)
    return math.sqrt(left / total) if total else 0.0


def randomised_svd(matrix: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading `size` singular triples, nearly: see `factorise`; the last OVERSAMPLED of them less than nearly."""
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(matrix.shape[1], size, generator=generator).to(matrix)
    basis = torch.linalg.qr(matrix @ sketch).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values, right


def _checked(rank: int) -> int:
    if rank < 1:
        raise ValueError(f"a rank of {rank} approximates nothing; it must be at least 1")
    return rank
