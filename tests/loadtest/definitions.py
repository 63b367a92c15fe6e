"""What numbers mean, written down as plainly as it can be said."""

from __future__ import annotations

import math


def by_definition(values: list[float], share: float) -> float:
    """The value at `share` of the way through the sorted list, linear between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
