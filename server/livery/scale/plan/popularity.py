"""How often each adapter is asked for, how many distinct ones meet in a batch, and how often one is where it is needed.

Adapter i of n is asked for with probability p_i, by Zipf's law p_i ~ i^-s; s = 0 is uniform. Where `counts` is given,
each share is that of so many adapters (`grouped`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

ALONE, GROUPS = 1000, 2000


def zipf(adapters: int, exponent: float) -> Floats:
    """Probabilities of `adapters` adapters, the most wanted first."""
    weights = np.arange(1, adapters + 1, dtype=np.float64) ** -exponent
    shares: Floats = weights / weights.sum()
    return shares


def grouped(shares: Floats) -> tuple[Floats, Floats]:
    """The same popularity in few numbers: mean shares, and of how many neighbours each is one's.

    The first thousand stand alone; behind them a group's adapters differ by less than 1 % under any law here that is
    used, so that what is summed over a million adapters is summed over 3,000, a millionth off.
    """
    if len(shares) <= 2 * ALONE:
        return shares, np.ones(len(shares))
    edges = np.unique(np.geomspace(ALONE, len(shares), GROUPS + 1).round().astype(np.int64))
    starts = np.concatenate([np.arange(ALONE), edges[:-1]])
    counts = np.diff(np.append(starts, len(shares))).astype(np.float64)
    means: Floats = np.add.reduceat(shares, starts) / counts
    return means, counts


def expected_distinct(shares: Floats, rows: float, counts: Floats | float = 1.0) -> float:
    """The expected number of distinct adapters among `rows` independent requests: the sum of 1 - (1 - p_i)^B.

    Adapter i is missing from all B rows with probability (1 - p_i)^B (Flajolet, Gardy and Thimonier, "Birthday
    paradox, coupon collectors, caching algorithms and self-organizing search", 1992, section 4).
    """
    return float((counts * -np.expm1(rows * np.log1p(-np.minimum(shares, 1 - 1e-15)))).sum())


def lru_hit_rate(shares: Floats, slots: int, counts: Floats | float = 1.0) -> float:
    """The share of requests that find their adapter among the `slots` used last.

    Che's approximation (Che, Tung and Wang, IEEE JSAC 20(7), 2002): an adapter is there if it was asked for within
    the time T in which `slots` distinct ones are, sum of 1 - exp(-p_i T) = slots.
    """
    if slots >= (counts * np.ones_like(shares)).sum():
        return 1.0
    if slots <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while _held(shares, high, counts) < slots:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _held(shares, middle, counts) < slots else (low, middle)
    return float((counts * shares) @ -np.expm1(-shares * high))


def _held(shares: Floats, window: float, counts: Floats | float) -> float:
    return float((counts * -np.expm1(-shares * window)).sum())


def dealt_out(shares: Floats, replicas: int) -> Floats:
    """What one replica sees where each adapter has a replica of its own: every `replicas`-th adapter."""
    own = shares[:: max(1, min(replicas, len(shares)))]
    dealt: Floats = own / own.sum()
    return dealt
