"""Measuring several things in turn, so that a machine that gets busier meanwhile does so for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Timed = Mapping[str, list[float]]  # seconds per round, by what was measured


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int, turns: int = 1) -> Timed:
    """Seconds of each variant, one number a round: the median of its `turns` turns, in which variants take turns.

    The order is reversed from turn to turn, so that nobody always comes after the same neighbour. One turn of each
    before the first round isn't counted.
    """
    names = list(variants)
    for name in names:
        variants[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        spent: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(turns):
            for name in names if turn % 2 == 0 else reversed(names):
                start = time.perf_counter()
                variants[name]()
                spent[name].append(time.perf_counter() - start)
        for name in names:
            found[name].append(statistics.median(spent[name]))
    return found
