"""Numbers with their unit and how they came, and how they read."""

from __future__ import annotations

from dataclasses import dataclass

SCALES = {
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
    "bytes/s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s")),
    "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a plan. `how` is its formula or where it comes from."""

    name: str
    value: float
    unit: str
    how: str

    def __str__(self) -> str:
        return told(self.value, self.unit)


def told(value: float, unit: str) -> str:
    """A number as people read it: 16.1 GB, 4.2 ms, 31 %, 1,190."""
    if unit == "share":
        return f"{100 * value:.3g} %"
    for factor, name in SCALES.get(unit, ()):
        if abs(value) >= factor:
            return f"{number(value / factor)} {name}"
    if unit in SCALES:
        return f"{value:.3g} {unit}" if value else f"0 {unit}"
    return f"{number(value)} {unit}".strip()


def number(value: float) -> str:
    """Three digits that count; all of them before the point."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
