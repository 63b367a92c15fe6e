"""Ratios to reach, and whether one does. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a ratio did; `shown` is one without a bar."""

    AIM = "aim"
    PASS = "pass"
    FAIL = "fail"
    SHOWN = "shown"


COLOURS = {Verdict.AIM: "bold green", Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.SHOWN: "dim"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio to reach (`bar`), and one to aim for. Where `lower` is set, less is better."""

    bar: float
    aim: float
    lower: bool = False

    def verdict(self, value: float) -> Verdict:
        sign = -1 if self.lower else 1
        if sign * value >= sign * self.aim:
            return Verdict.AIM
        return Verdict.PASS if sign * value >= sign * self.bar else Verdict.FAIL

    def __str__(self) -> str:
        return f"{'≤' if self.lower else '≥'} {self.bar:g}, aim {self.aim:g}"
