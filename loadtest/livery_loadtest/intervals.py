"""How sure a number is: over repeats by Student's t, within few repeats by resampling blocks.

Blocks, because requests that follow each other share a queue and aren't independent. Sources: Carlstein, "The use of
subseries values for estimating the variance" (1986), for blocks that don't overlap; Hall, Horowitz and Jing, "On
blocking rules for the bootstrap with dependent data" (1995), for lengths that grow with the cube root of the number.
They are a little too sure still: of 500 requests whose waits are correlated by 0.6 from one to the next, intervals of
the 90th percentile hold the truth 85 times in 100 (tests). Repeats are better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from livery_loadtest.columns import Floats, Ints

LEVEL = 0.95
ENOUGH_REPEATS = 5
RESAMPLES = 1000
_FEWEST_BLOCKS = 5
_TAIL = NormalDist().inv_cdf(0.5 + LEVEL / 2)
# Values are sorted into bins of about equal numbers, finer towards the slow end, where percentiles are asked for.
_BINS = np.unique(np.concatenate([np.linspace(0, 1, 1001), 1 - np.geomspace(1e-1, 1e-6, 301)]))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % confidence interval; `low` and `high` are equal to `value` where nothing can be said."""

    value: float
    low: float
    high: float


def t_quantile(degrees: int) -> float:
    """Student's t at 97.5 %, within 0.1 % from 4 degrees of freedom on.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = _TAIL
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * degrees**4)
    )


def over_repeats(values: Sequence[float]) -> Estimate:
    """The mean of at least ENOUGH_REPEATS values with its t interval."""
    mean = float(np.mean(values))
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def how(repeats: int) -> str:
    """In words, where the intervals of a summary come from."""
    if repeats >= ENOUGH_REPEATS:
        return f"95 % confidence intervals: Student's t over {repeats} repeats"
    said = "1 repeat" if repeats == 1 else f"{repeats} repeats"
    return (
        f"95 % confidence intervals: bootstrap over blocks of requests within {said}; "
        f"it doesn't know how runs differ: {ENOUGH_REPEATS} repeats or more say that"
    )


def block_count(items: int) -> int:
    """How many blocks so many items are cut into: twice their cube root in each, and at least a few blocks."""
    return min(items, max(_FEWEST_BLOCKS, round(float(np.cbrt(items)) ** 2 / 2)))


def sums(places: Ints, amounts: Floats, count: int) -> Floats:
    """[count] the amounts of each place added up."""
    return np.bincount(places, amounts, count).astype(np.float64)


class Blocks:
    """Items (requests, windows of time) of several repeats in blocks, drawn again with replacement within each repeat.

    Draws are the same for every number taken of them, and for every other `Blocks` of the same sizes and seed: so
    that two targets can be compared draw by draw.
    """

    def __init__(self, sizes: Sequence[int], seed: int = 0) -> None:
        """`sizes`: the number of items in each repeat."""
        generator = np.random.default_rng(seed)
        places, weights = [], []
        before = 0
        for size in sizes:
            if not size:
                continue
            count = block_count(size)
            places.append(before + np.arange(size) * count // size)
            weights.append(generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES))
            before += count
        self.count = before
        self.place: Ints = np.concatenate(places) if places else np.empty(0, np.int64)  # [items] the block of each
        self.weights = (  # [resamples, blocks] how often each is drawn
            np.concatenate(weights, axis=1).astype(np.float32) if weights else np.empty((RESAMPLES, 0), np.float32)
        )

    def ratios(self, above: Floats, below: Floats) -> Floats:
        """Sum over sum, [resamples], of two numbers an item; NaN where the lower one is 0."""
        over, under = (self.weights @ sums(self.place, values, self.count) for values in (above, below))
        found: Floats = np.divide(over, under, out=np.full(RESAMPLES, np.nan), where=under > 0)
        return found

    def percentiles(self, values: Floats, items: Ints, shares: Sequence[float]) -> Floats:
        """[shares, resamples] of values that belong to these items; several, one or none an item; NaN without any."""
        if not len(values):
            return np.full((len(shares), RESAMPLES), np.nan)
        edges = np.unique(np.quantile(values, _BINS)) if len(values) > len(_BINS) else np.unique(values)
        bins = np.minimum(np.searchsorted(edges, values), len(edges) - 1)
        cells = np.bincount(self.place[items] * len(edges) + bins, minlength=self.count * len(edges))
        counts = self.weights @ cells.reshape(self.count, len(edges)).astype(np.float32)
        passed = np.cumsum(counts, axis=1)
        found = np.empty((len(shares), RESAMPLES))
        for row, share in enumerate(shares):
            reached = passed >= share * passed[:, -1:]
            found[row] = np.where(passed[:, -1] > 0, edges[np.argmax(reached, axis=1)], np.nan)
        return found


def interval(value: float, drawn: Floats) -> Estimate:
    """A number with the middle 95 % of what resampling gave for it."""
    some = drawn[np.isfinite(drawn)]
    if not len(some):
        return Estimate(value, value, value)
    low, high = np.quantile(some, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)))
