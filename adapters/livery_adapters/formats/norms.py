"""Norms of W + ΔW, a slice at a time, so that no second copy of a large weight is ever held."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from livery_adapters.canonical import LowRank

_ELEMENTS = 1 << 22  # of one slice: 16 MB in fp32


def row_norms(weight: Tensor, deltas: Sequence[LowRank]) -> Tensor:
    """‖(W + Σ scale · B·A)[i, :]‖ for every row of W [out, in], in fp32 [out]."""
    norms = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    step = max(1, _ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        part = weight[start : start + step].float()
        for delta in deltas:
            part = part + delta.scale * (delta.b[start : start + step].to(part) @ delta.a.to(part))
        norms[start : start + step] = torch.linalg.vector_norm(part, dim=1)
    return norms


def column_norms(weight: Tensor, delta: LowRank) -> Tensor:
    """‖(W + scale · (B·A)ᵀ)[:, j]‖ for every column of an embedding's W [vocabulary, dim], in fp32 [dim].

    B is [dim, rank] and A [rank, vocabulary]. Squares are summed in fp64 over the slices.
    """
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    step = max(1, _ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        part = weight[start : start + step].float()
        part = part + delta.scale * (delta.a[:, start : start + step].to(part).t() @ delta.b.to(part).t())
        total += torch.linalg.vector_norm(part, dim=0).double().square()
    return total.sqrt().float()
