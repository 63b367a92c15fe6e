"""How several dense ΔW of one module become one: by sum, TIES or DARE.

TIES (Yadav et al., 2023, arXiv:2306.01708): trim every ΔW to its largest entries, elect a sign per entry by the
larger total, take the mean of what agrees with it. DARE (Yu et al., 2023, arXiv:2311.03099): drop entries at random
and rescale the rest, which leaves each entry's expectation as it was; then sum, or elect as TIES does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Method = Literal["linear", "ties", "dare_linear", "dare_ties"]


def combined(
    method: Method, deltas: Sequence[Tensor], weights: Sequence[float], density: float, keys: Sequence[str]
) -> Tensor:
    """One ΔW [out, in] for those of several adapters, by their weights; `density` is the share of entries kept.

    `keys` seed the random drop, one per ΔW. Uses the memory of `deltas`: they are not to be read again.

    The same as PEFT's `ties_svd`, `dare_linear_svd` and `dare_ties_svd` before their SVD but for three things. A sign
    is elected by the weighted entries, where PEFT elects before weighting: a part that is to count for a tenth, or is
    subtracted, has so much of a say in it; for equal positive weights there is no difference. Entries that cancel
    exactly give nothing, where PEFT takes the positive ones. And entries of equal size are trimmed or kept together,
    so that no order in memory decides.
    """
    for delta, weight, key in zip(deltas, weights, keys, strict=True):
        if method == "ties":
            trim(delta, density)
        elif method != "linear":
            drop(delta, density, key)
        delta.mul_(weight)
    return elect(deltas) if method in ("ties", "dare_ties") else _sum(deltas)


def trim(delta: Tensor, density: float) -> None:
    """Zero all but the share `density` of the entries that are largest in magnitude, in place."""
    kept = max(1, int(density * delta.numel()))
    if kept < delta.numel():
        size = delta.abs()
        delta.masked_fill_(size < size.flatten().kthvalue(delta.numel() - kept + 1).values, 0.0)


def drop(delta: Tensor, density: float, key: str) -> None:
    """Keep each entry with probability `density`, as `key` decides, times 1/density; in place."""
    if density == 1:
        return
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
    draws = torch.rand(delta.shape, generator=torch.Generator().manual_seed(seed)).to(delta.device)
    delta.masked_fill_(draws >= density, 0.0).div_(density)


def elect(deltas: Sequence[Tensor]) -> Tensor:
    """Per entry, the mean of those that have the sign of the sum; nothing where they cancel or all are zero."""
    sign = _sum(deltas).sign_()
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta in deltas:
        agrees = delta.sign() == sign
        total += torch.where(agrees, delta, 0.0)
        count += agrees
    return total.div_(count.clamp_(min=1.0))


def _sum(deltas: Sequence[Tensor]) -> Tensor:
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total
