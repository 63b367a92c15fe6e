"""A full-rank ΔW as the best low-rank pair, with what that costs."""

from __future__ import annotations

import torch
from torch import Tensor

from livery_adapters.canonical import LowRank


def factorised(delta: Tensor, rank: int) -> tuple[LowRank, float]:
    """The best pair of at most `rank` for ΔW [out, in] and its relative error ‖ΔW - B·A‖/‖ΔW‖ (Frobenius).

    By Eckart and Young the truncated singular value decomposition is the best and its error is the norm of the
    singular values left out. The values are split evenly between both factors, which keeps both in range.
    """
    left, values, right = torch.linalg.svd(delta.float(), full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    pair = LowRank(a=root[:, None] * right[:kept], b=left[:, :kept] * root, scale=1.0)
    whole = float(torch.linalg.vector_norm(values))
    lost = float(torch.linalg.vector_norm(values[kept:]))
    return pair, lost / whole if whole else 0.0
