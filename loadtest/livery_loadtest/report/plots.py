"""Plots as numbers: axes with ticks, lines, dots and strips in percent of the plot's width and height.

The page draws them as SVG that stretches with its box, and their labels as text beside it, so that a plot is as
readable on a phone as on a desk. Knows nothing of load tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Label = Callable[[float], str]
Scale = Callable[[float], float]

_MOST_TICKS = 6
_LEAST_GAP = 0.17  # between ticks of a logarithmic axis, by its length


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on a scale that puts them in order; `ticks` are values with their labels."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    scale: Scale = float

    def place(self, value: float) -> float:
        """In percent from the low end, within the axis."""
        low, high = self.scale(self.low), self.scale(self.high)
        share = (self.scale(min(max(value, self.low), self.high)) - low) / (high - low) if high > low else 0.5
        return round(100 * share, 2)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Ticks in percent, with labels."""
        return [(self.place(value), label) for value, label in self.ticks]


def linear(title: str, low: float, high: float, label: Label) -> Axis:
    """From a round number at or below `low` to one at or above `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / (_MOST_TICKS - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(title, first * step, last * step, [(n * step, label(n * step)) for n in range(first, last + 1)])


def exact(title: str, low: float, high: float, label: Label) -> Axis:
    """From `low` to `high` to the point, with round ticks between."""
    around = linear(title, low, high, label)
    return Axis(title, low, max(high, low + 1e-9), [(at, text) for at, text in around.ticks if low <= at <= high])


def logarithmic(title: str, low: float, high: float, label: Label) -> Axis:
    """From `low` to `high`, both above 0, with as many round ticks as have room."""
    if high < low * 1.5:
        low, high = low / 1.25, high * 1.25
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for steps in (range(10, 100), range(10, 100, 5), (10, 15, 20, 30, 40, 50, 70), (10, 20, 50), (10, 30), (10,)):
        ticks = [power * step / 10 for power in powers for step in steps if low <= power * step / 10 <= high]
        least = _LEAST_GAP * math.log10(high / low)
        if all(math.log10(after / before) >= least for before, after in pairwise(ticks)):
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) * _LEAST_GAP)]  # many powers of ten
    return Axis(title, low, high, [(tick, label(tick)) for tick in ticks], math.log10)


def nines(title: str, most: float) -> Axis:
    """Shares below 1, each further nine as long as the one before: the slow few are as easy to see as the many."""
    steps = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
    ticks = [(step, f"{100 * step:g} %" if step or most < 0.99 else "") for step in steps if step <= most]
    return Axis(title, 0.0, most, ticks, lambda share: -math.log10(1 - share))


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least so much."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))


@dataclass(frozen=True)
class Line:
    """A line through points; `colour` is the place of its target, `band` a lower and an upper edge about it."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    stepped: bool = False


@dataclass(frozen=True)
class Dot:
    """A point with what it says when it is pointed at; `low` and `high` are the ends of its interval."""

    colour: int
    x: float
    y: float
    says: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Numbers:
    """A table: the first `words` columns are words, the others numbers, what comes after a line break in small.

    `colours` has the place of each row's target, which is told in the column headed `target`.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 2
    colours: Sequence[int] = ()


@dataclass(frozen=True)
class Plot:
    """Lines and dots on two axes; `reads` say how a value of each axis is told when it is pointed at."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()
    numbers: Numbers | None = None
    note: str = ""
    reads: tuple[Label, Label] = field(default=(str, str))

    def path(self, line: Line) -> str:
        """The line as an SVG path."""
        return _path(self._placed(line))

    def area(self, line: Line) -> str:
        """The band about a line as an SVG path; empty without one."""
        if not line.band:
            return ""
        upper = [self.at(x, high) for x, _, high in line.band]
        lower = [self.at(x, low) for x, low, _ in reversed(line.band)]
        return _path([*upper, *lower]) + "Z"

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point in percent from the left and from the top."""
        return self.x.place(x), round(100 - self.y.place(y), 2)

    def told(self) -> list[dict[str, object]]:
        """The lines for pointing at: name, colour, and for each point its place and what it says."""
        return [
            {
                "name": line.name,
                "colour": line.colour,
                "points": [
                    [*self.at(x, y), self.reads[0](x), self.reads[1](y)] for x, y in line.points if math.isfinite(y)
                ],
            }
            for line in self.lines
        ]

    def _placed(self, line: Line) -> list[tuple[float, float]]:
        placed = [self.at(x, y) for x, y in line.points if math.isfinite(y)]
        if not line.stepped:
            return placed
        steps = placed[:1]
        for x, y in placed[1:]:
            steps += [(x, steps[-1][1]), (x, y)]
        return steps


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "".join(f"{'L' if place else 'M'}{x:g} {y:g}" for place, (x, y) in enumerate(points))


@dataclass(frozen=True)
class Cell:
    """A stretch of a strip: from, width in percent; `strength` from 0 to 1."""

    x: float
    width: float
    strength: float
    says: str


@dataclass(frozen=True)
class Strip:
    """One row of a heat map or of a timeline."""

    label: str
    cells: Sequence[Cell]
    colour: int = 0
    total: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Strips:
    """Rows over one axis; `scale` says what the weakest and the strongest colour stand for."""

    title: str
    x: Axis
    rows: Sequence[Strip]
    scale: tuple[str, str] | None = None
    note: str = ""
