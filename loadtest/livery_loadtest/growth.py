"""What creeps over a long run: a straight line through the server's memory, its descriptors, latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from livery_loadtest.columns import Columns, Floats, Ints
from livery_loadtest.intervals import Estimate, sums, t_quantile
from livery_loadtest.record import Sample
from livery_loadtest.spec import Slope

SHORTEST_S = 300.0  # what grows within less is starting up, not growing
_FEWEST, _MOST_STRETCHES = 5, 20
# Looked at in any long run, by the name it has among the server's metrics: what to call it, unit, divided by.
WATCHED = {
    "process_resident_memory_bytes": ("resident memory", "MiB", 2.0**20),
    "process_open_fds": ("open descriptors", "", 1.0),
    "livery_engine_process_resident_memory_bytes": ("resident memory of the engine", "MiB", 2.0**20),
    "livery_engine_process_open_fds": ("open descriptors of the engine", "", 1.0),
}
LATENCIES = {
    "ttft_ms": ("time to first token, median by the minute", "ms"),
    "itl_ms": ("inter-token latency, median by the minute", "ms"),
    "e2e_ms": ("end to end, median by the minute", "ms"),
}


@dataclass(frozen=True, slots=True)
class Growth:
    """A straight line through a run: `per_hour` with its interval, from `begin` to `end`.

    `percent_per_hour` is by its first level; `allowed` is what the workload allows of that, None where it says nothing.
    `missing`: the workload asks for it, and there is nothing to draw it through.
    """

    of: str
    what: str
    unit: str
    per_hour: Estimate
    begin: float
    end: float
    percent_per_hour: float
    allowed: float | None = None
    missing: bool = False

    @property
    def holds(self) -> bool:
        """Whether what the workload allows is kept, as far as it says anything."""
        return self.allowed is None or not (self.missing or self.too_steep)

    @property
    def shown(self) -> bool:
        """Whether it grows or shrinks at all: its interval doesn't contain 0."""
        return not self.per_hour.low <= 0 <= self.per_hour.high

    @property
    def too_steep(self) -> bool:
        """More than allowed, and shown to grow."""
        return self.allowed is not None and self.per_hour.low > 0 and self.percent_per_hour > self.allowed


def growth(columns: Columns, samples: Sequence[Sample], seconds: float, asked: Sequence[Slope]) -> tuple[Growth, ...]:
    """What the workload asks to look at, and what is always looked at; nothing for runs below SHORTEST_S."""
    if seconds < SHORTEST_S:
        return ()
    named = {one.of for one in asked}
    always = [name for name in (*WATCHED, *LATENCIES) if name not in named]
    wanted: list[tuple[str, float, float | None]]
    wanted = [(one.of, min(one.after_s, seconds / 2), one.percent_per_hour) for one in asked]
    wanted += [(of, seconds / 10, None) for of in always]
    found = [_line(of, columns, samples, after_s, allowed) for of, after_s, allowed in wanted]
    return tuple(line for line in found if line is not None)


def _line(of: str, columns: Columns, samples: Sequence[Sample], after_s: float, allowed: float | None) -> Growth | None:
    if of in LATENCIES:
        what, unit = LATENCIES[of]
        times, values = _by_the_minute(of, columns)
    else:
        what, unit, divided = WATCHED.get(of, (of, "", 1.0))
        times = np.asarray([sample.at for sample in samples])
        values = np.asarray([_added_up(of, sample) / divided for sample in samples])
    late = times >= after_s
    line = straight(times[late], values[late])
    if line is None:
        return None if allowed is None else Growth(of, what, unit, Estimate(0, 0, 0), 0, 0, 0, allowed, missing=True)
    per_hour, begin, end = line
    percent = 100 * per_hour.value / abs(begin) if begin else 0.0
    return Growth(of, what, unit, per_hour, begin, end, percent, allowed)


def _added_up(of: str, sample: Sample) -> float:
    """All series of a metric's name; NaN where there is none."""
    some = [value for name, value in sample.values.items() if name == of or name.startswith(of + "{")]
    return sum(some) if some else float("nan")


def _by_the_minute(of: str, columns: Columns) -> tuple[Floats, Floats]:
    """The middle of each minute and the median of a latency in it, in milliseconds."""
    if of == "itl_ms" and len(columns.folded):
        values, times = columns.tpot, columns.begun  # each answer's mean is all that is left of its gaps
    elif of == "itl_ms":
        values, owners = columns.gaps()
        times = columns.begun[owners]
    else:
        values, times = (columns.ttft if of == "ttft_ms" else columns.e2e), columns.begun
    known = np.isfinite(values) & np.isfinite(times)
    minutes: Ints = (times[known] // 60).astype(np.int64)
    order = np.argsort(minutes, kind="stable")
    minutes, values = minutes[order], 1000 * values[known][order]
    each, begins = np.unique(minutes, return_index=True)
    medians = [float(np.median(part)) for part in np.split(values, begins[1:])] if len(values) else []
    return 60.0 * each.astype(np.float64) + 30.0, np.asarray(medians)


def straight(times: Floats, values: Floats) -> tuple[Estimate, float, float] | None:
    """Least squares: growth an hour with its 95 % interval, the line's first and last value; `times` in seconds.

    Through the means of up to 20 equal stretches of time, so that neighbouring values that move together don't count
    as independent ones. None for too few of them.
    """
    known = np.isfinite(times) & np.isfinite(values)
    times, values = times[known], values[known]
    if len(times) < _FEWEST or np.ptp(times) == 0:
        return None
    stretches = min(_MOST_STRETCHES, len(times))
    place = np.minimum(((times - times.min()) / np.ptp(times) * stretches).astype(np.int64), stretches - 1)
    number = np.bincount(place, minlength=stretches)
    filled = number > 0
    x, y = (sums(place, some, stretches)[filled] / number[filled] for some in (times, values))
    if len(x) < _FEWEST:
        return None
    spread = float(np.sum((x - x.mean()) ** 2))
    steep = float(np.sum((x - x.mean()) * (y - y.mean()))) / spread
    line = y.mean() + steep * (x - x.mean())
    error = (float(np.sum((y - line) ** 2)) / (len(x) - 2) / spread) ** 0.5
    half = t_quantile(len(x) - 2) * error
    per_hour = Estimate(3600 * steep, 3600 * (steep - half), 3600 * (steep + half))
    return per_hour, float(line[0]), float(line[-1])
