"""The leading part of a ΔW: as many singular triples as an error allows, or a given number of them.

found = leading(delta, most=256, error=0.3)
found.pair                  # B·A, rank as small as the error allows
found.error                 # ‖ΔW - B·A‖ / ‖ΔW‖ of that very pair
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from livery_adapters.approximate import OVERSAMPLED, randomised_svd, relative_error
from livery_adapters.canonical import LowRank
from livery_adapters.measure import squared_norm, wide

_EXACT = 1024  # up to this many rows or columns all singular values cost less than a search for the rank
_FIRST = 64  # singular triples that a search begins with
_NOTHING = 1e-13  # of ‖ΔW‖²: below it a direction is rounding


@dataclass(frozen=True, slots=True)
class Leading:
    """A pair for ΔW with its relative error, ‖ΔW‖, and whether the error asked for was reached."""

    pair: LowRank
    error: float
    norm: float
    reached: bool


def leading(delta: Tensor, most: int, error: float, dtype: torch.dtype = torch.float32) -> Leading:
    """The pair of lowest rank, `most` at the most, with ‖ΔW - B·A‖ <= error · ‖ΔW‖; halves in `dtype`, scale 1.

    Of a ΔW [out_features, in_features] that isn't zero. With few rows or columns all singular values are worked out,
    from the Gram matrix in fp64. Otherwise a randomised decomposition (Halko, Martinsson and Tropp 2011, algorithm
    4.4) grows twofold until what it holds is enough: the energy outside of an orthonormal basis Q is
    ‖ΔW‖² - ‖QᵀΔW‖², so that no spectrum has to be guessed (section 4.4 there). The same ΔW gives the same pair. The
    singular values are split evenly between the halves. The error is that of the pair as it is returned.
    """
    matrix = wide(delta)
    most = min(most, *matrix.shape)
    whole = squared_norm(matrix)
    allowed = max(error * error, _NOTHING) * whole
    if min(matrix.shape) <= _EXACT or 4 * (most + OVERSAMPLED) >= min(matrix.shape):
        left, values, right = _all(matrix)
        rank = _rank(values, whole, allowed, most)
    else:
        size = min(_FIRST, most)
        while True:
            left, values, right = randomised_svd(matrix, size + OVERSAMPLED)
            rank = _rank(values, whole, allowed, size)
            if size == most or _left(values[:rank], whole) <= allowed:
                break
            size = min(2 * size, most)
    root = values[:rank].sqrt().to(matrix)
    a, b = root[:, None] * right[:rank], left[:, :rank] * root
    pair = LowRank(a.to(dtype).contiguous(), b.to(dtype).contiguous(), 1.0)
    reached = _left(values[:rank], whole) <= allowed
    return Leading(pair, relative_error(matrix, pair), math.sqrt(whole), reached)


def _all(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular triples of a matrix by the Gram matrix of its shorter side; left and right in its dtype.

    The basis is orthonormal to fp64 and the other factor is the projection on it, so that the product of the first r
    is the best there is even where small singular values themselves are not accurate.
    """
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = _all(matrix.T)
        return right.T, values, left.T
    double = matrix.double()
    basis = torch.linalg.eigh(double @ double.T).eigenvectors.flip(1)
    right = basis.T @ double
    del double  # a module's size twice over, as `right` is; nothing else as large lives beside these
    values = torch.linalg.vector_norm(right, dim=1)
    right /= values.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return basis.to(matrix), values, right.to(matrix)


def _rank(values: Tensor, whole: float, allowed: float, most: int) -> int:
    """The smallest number of values that leaves no more than `allowed` of `whole`, both squared; at least 1."""
    left = whole - torch.cumsum(values[:most].double().square(), 0)
    enough = (left <= allowed).nonzero()
    return int(enough[0]) + 1 if len(enough) else len(left)


def _left(values: Tensor, whole: float) -> float:
    return whole - squared_norm(values)
