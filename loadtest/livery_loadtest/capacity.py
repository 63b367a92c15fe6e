"""The highest rate that still meets an SLO: doubled until it fails, then halved in between (bisection on a log scale).

Pure: what a rate does is measured by whoever calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import sqrt

WITHIN = 1.05  # the search ends when the lowest rate that fails is this near to the highest that holds
MOST_TRIALS = 32
DOUBTED = 1.2  # a rate that failed its second measurement was near the edge: the search goes on this far below it


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate, measured: `good` is the share of requests within the SLO; `because` says why it doesn't hold, if so.

    One that was `interrupted` says nothing of its rate, and is the last one.
    """

    rate: float
    good: float
    holds: bool
    because: str = ""
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    """What was found: `highest` held, `lowest_failing` didn't; None where no trial showed that. Trials in order.

    `confirmed` says that `highest` held when it was measured once more.
    """

    highest: float | None
    lowest_failing: float | None
    confirmed: bool
    trials: tuple[Trial, ...]

    @property
    def interrupted(self) -> bool:
        return any(trial.interrupted for trial in self.trials)


Measure = Callable[[float], Awaitable[Trial]]


async def find_capacity(measure: Measure, first: float, ceiling: float, within: float = WITHIN) -> Capacity:
    """Search from `first` up to `ceiling` requests a second, to within a factor of `within`.

    Takes that a higher rate is never easier to hold; a rate that fails its second measurement counts as failing, and
    the search goes on below it; an interrupted one ends it with what is known. Raises ValueError for rates
    that aren't positive or a factor that isn't above 1.
    """
    if not 0 < first <= ceiling or within <= 1:
        given = f"first {first:g}, ceiling {ceiling:g}, within {within:g}"
        raise ValueError(f"{given}: give 0 < first <= ceiling and within > 1")
    search = _Search(measure)
    rate = first
    while await search.holds(rate) and rate < ceiling:
        rate = min(rate * 2, ceiling)
    while search.highest is None and not search.spent and search.lowest_failing > first / 64:
        await search.holds(search.lowest_failing / 2)  # even the first was too much
    confirmed = False
    while search.highest is not None and not search.spent:
        if search.lowest_failing / search.highest > within and search.lowest_failing != float("inf"):
            await search.holds(sqrt(search.highest * search.lowest_failing))
            continue
        confirmed = await search.holds(search.highest)
        if confirmed:
            break
    return search.found(confirmed)


class _Search:
    """What is known so far; one writer of it."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._held: set[float] = set()
        self.trials: list[Trial] = []
        self.lowest_failing = float("inf")
        self._interrupted = False

    @property
    def highest(self) -> float | None:
        return max(self._held, default=None)

    @property
    def spent(self) -> bool:
        return len(self.trials) >= MOST_TRIALS or self._interrupted

    async def holds(self, rate: float) -> bool:
        trial = await self._measure(rate)
        self.trials.append(trial)
        if trial.interrupted:
            self._interrupted = True
        elif trial.holds:
            self._held.add(rate)
        else:
            failing = rate / DOUBTED if rate in self._held else rate
            self.lowest_failing = min(self.lowest_failing, failing)
            self._held = {held for held in self._held if held < failing}
        return trial.holds and not trial.interrupted

    def found(self, confirmed: bool) -> Capacity:
        failing = None if self.lowest_failing == float("inf") else self.lowest_failing
        return Capacity(self.highest, failing, confirmed, tuple(self.trials))
