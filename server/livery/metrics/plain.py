"""Plain numbers that are turned into families at a scrape.

Each is written by the event loop alone and read by whichever thread renders, so nothing is locked on a token's way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from livery.engine.figures import Spread

Labels = dict[str, str]


class Histogram:
    """Observations, counted by the first of the rising `bounds` that is not below them: `counts`, and their `total`."""

    __slots__ = ("_family", "_names", "bounds", "counts", "total")

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._family = name, text
        self.bounds = tuple(bounds)
        self._names = names_of(bounds)
        self.counts = [0] * len(self._names)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def take(self) -> Spread:
        """What was observed since the last time. Whoever counts in `counts` goes on doing so."""
        taken = self.told()
        self.counts[:] = [0] * len(self.counts)
        self.total = 0.0
        return taken

    def told(self) -> Spread:
        return Spread(tuple(self.counts), self.total)

    def add(self, spread: Spread) -> None:
        for place, count in enumerate(spread.counts):
            self.counts[place] += count
        self.total += spread.total

    def family(self, labels: Labels) -> Metric:
        """As of now; an observation made meanwhile may show in one of counts and sum and not yet in the other."""
        return histogram(*self._family, labels, self._names, self.counts.copy(), self.total)


class Counter:
    """A number that only grows."""

    __slots__ = ("_family", "value")

    def __init__(self, name: str, text: str) -> None:
        self._family = name, text
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        self.value += amount

    def family(self, labels: Labels) -> Metric:
        return counter(*self._family, labels, self.value)


def names_of(bounds: Sequence[float]) -> list[str]:
    """Bounds as Prometheus writes them, and the one above all."""
    return [*(str(float(bound)) for bound in bounds), "+Inf"]


def histogram(
    name: str, text: str, labels: Labels, bounds: Sequence[str], counts: Sequence[int], total: float
) -> Metric:
    """Observations by bounds, the last of which is +Inf, each counted in one of `counts`."""
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), list(zip(bounds, accumulate(counts), strict=True)), total)
    return family


def counter(name: str, text: str, labels: Labels, value: float) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def gauge(name: str, text: str, labels: Labels, value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
