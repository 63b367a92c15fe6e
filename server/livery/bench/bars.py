"""What a measurement is held against: the bars, and a row of the result. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from livery.bench.physics import Peak
from livery_loadtest.bars import Bar, Verdict
from livery_loadtest.measures import Spread


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result.

    `value` is the judged ratio over the rounds; `facts` are the numbers it was made of (seconds unless the name says
    otherwise); `note` says in words what was compared. `beside` is the same measurement by a floor that also counts
    operations: shown, never judged.
    """

    name: str
    value: Spread
    bar: Bar | None = None
    note: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    beside: Spread | None = None

    @property
    def verdict(self) -> Verdict:
        return self.bar.verdict(self.value.median) if self.bar else Verdict.SHOWN


# What was measured, as a row once the machine's peak is known: it is measured until the end of the run.
Measured = Callable[[Peak], Row]


def settled(row: Row) -> Measured:
    """A row in which the machine's peak plays no part."""
    return lambda _: row


BASE_ONLY = Bar(0.99, 0.997)
ONE_ADAPTER = Bar(0.93, 0.98)
OF_PHYSICAL = Bar(0.85, 0.95)
PREFILL = Bar(0.93, 0.985)
MIXED_RANKS = Bar(1.10, 1.03, lower=True)
COLD_TTFT = Bar(1.15, 1.03, lower=True)
LOADS_BESIDE = Bar(1.15, 1.03, lower=True)
OVERSUBSCRIBED = Bar(2.0, 1.1, lower=True)
MANY_KNOWN = Bar(0.95, 0.99)
CONSTRAINED = Bar(0.90, 0.97)
AS_MERGED = Bar(1.0, 1.0)
ROOFLINE = Bar(0.75, 0.90)

SMALL_SHARE = 0.01  # of the base's bytes: an adapter beyond it is held against what is physical
