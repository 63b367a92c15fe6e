"""The highest rate that still meets an SLO: doubled until it fails, then halved in between (bisection on a log scale).

Pure: what a rate does is measured by whoever calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from math import sqrt

WITHIN = 1.05  # the search ends when the lowest rate that fails is this near to the highest that holds
MOST_TRIALS = 32
LOWEST = 64  # the search gives up at so many times less than the rate it began with
KEPT_UP = 0.9  # of the requests that come: who completes fewer a second doesn't hold their rate
JITTER_S = 0.05  # by which a few answers may come late for reasons of the moment
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
    confirmed = False
    while not (search.spent or confirmed):
        if search.highest is None:  # even the first was too much, or failed when it was measured again
            if search.lowest_failing <= first / LOWEST:
                break
            await search.holds(search.lowest_failing / 2)
        elif search.lowest_failing / search.highest > within and search.lowest_failing != float("inf"):
            await search.holds(sqrt(search.highest * search.lowest_failing))
        else:
            confirmed = await search.holds(search.highest)
    return search.found(confirmed)


@dataclass(frozen=True, slots=True)
class Pace:
    """Requests a second that came and that were completed in most of a run, and whether the server kept up.

    One that doesn't has a queue that grows for as long as requests come, however soon each is answered at first.
    """

    came: float
    completed: float
    kept_up: bool


def pace(intended: Iterable[float], finished: Iterable[float]) -> Pace:
    """Of all requests of a run: the seconds at which each was due, and at which its answer was whole.

    From a quarter of them to nine tenths, in the order of either: what fills the server and what drains it say nothing
    of its pace, and one that keeps up completes as requests come, only later.
    """
    due, done = sorted(intended), sorted(finished)
    begin, end = len(done) // 4, len(done) * 9 // 10
    if end <= begin:
        return Pace(0.0, 0.0, kept_up=True)
    coming, completing = (max(times[end] - times[begin], 1e-9) for times in (due, done))
    kept_up = completing <= coming / KEPT_UP + JITTER_S
    return Pace((end - begin) / coming, (end - begin) / completing, kept_up)


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
