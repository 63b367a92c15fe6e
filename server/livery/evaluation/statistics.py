"""How sure numbers are: of texts and of differences by the bootstrap of Efron, of shares of items by Wilson's interval.

Pieces (windows of a text, items of a task) are drawn with replacement as often as there are, and the number is worked
out again for each draw; all variants use the same draws, so that a difference is over pairs (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapters 6 and 13). The 2.5 and 97.5 percentiles are the interval.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

DRAWS = 4000
LEVEL = 0.95
LEAST_PIECES = 5  # fewer say nothing about how others would differ
_AT_ONCE = 1 << 22
_Z = 1.959964


class Draws:
    """The same draws for everything that is measured on the same pieces."""

    def __init__(self, pieces: int, seed: int = 0) -> None:
        self._pieces = pieces
        self._seed = seed

    def ratio(self, above: Floats, below: Floats) -> Interval | None:
        """The interval of sum(above) / sum(below), one entry a piece; None for too few pieces."""
        if self._pieces < LEAST_PIECES:
            return None
        generator = np.random.default_rng(self._seed)
        found = []
        left = DRAWS
        while left:
            count = min(left, max(1, _AT_ONCE // self._pieces))
            drawn = generator.integers(0, self._pieces, (count, self._pieces))
            found.append(above[drawn].sum(axis=1) / below[drawn].sum(axis=1))
            left -= count
        low, high = np.quantile(np.concatenate(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def wilson(right: float, items: int) -> Interval:
    """The interval of a share, here `right` of `items`: that of Wilson (1927), which none or all right don't shrink."""
    share, z2 = right / items, _Z * _Z
    middle = (share + z2 / (2 * items)) / (1 + z2 / items)
    half = _Z / (1 + z2 / items) * math.sqrt(share * (1 - share) / items + z2 / (4 * items * items))
    return max(0.0, middle - half), min(1.0, middle + half)
