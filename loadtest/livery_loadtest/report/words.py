"""Numbers as people read them, the same in every report."""

from __future__ import annotations

from collections import Counter

from livery_loadtest.intervals import Estimate
from livery_loadtest.kinds import AzureGaps
from livery_loadtest.machine import Machine
from livery_loadtest.spec import Closed, Gamma, Poisson, Slo, Workload

NOTHING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """About so many digits that matter, thousands apart: 0.0123, 4.56, 78.9, 1,235."""
    if value is None or value != value:
        return NOTHING
    if value == 0:
        return "0"
    places = digits - 1
    size = abs(value)
    while size >= 10 and places > 0:
        size, places = size / 10, places - 1
    while size < 1 and places < digits + 3:
        size, places = size * 10, places + 1
    return f"{value:,.{places}f}"


def count(value: int) -> str:
    return f"{value:,}"


def cores(value: int) -> str:
    return "1 core" if value == 1 else f"{value:,} cores"


def hardware(machine: Machine) -> str:
    """A machine's processor, cores and GPUs."""
    gpus = "".join(f", {count} × {name}" for name, count in Counter(machine.gpus).items())
    return f"{machine.cpu}, {cores(machine.cores)}{gpus}"


def share(value: float | None) -> str:
    """As a percentage: all and none only where it is all and none."""
    if value is None:
        return NOTHING
    if 0.9995 <= value < 1:
        return ">99.9 %"
    if 0 < value < 0.0005:
        return "<0.1 %"
    return f"{100 * value:.1f} %" if 0 < value < 1 else f"{100 * value:.0f} %"


def duration(milliseconds: float | None) -> str:
    """In the unit that fits: µs, ms, s."""
    if milliseconds is None or milliseconds != milliseconds:
        return NOTHING
    size = abs(milliseconds)
    if size >= 1000:
        return f"{number(milliseconds / 1000)} s"
    if size < 1:
        return f"{number(milliseconds * 1000)} µs"
    return f"{number(milliseconds)} ms"


def bounds(value: Estimate) -> str:
    """An interval; nothing where there is none."""
    return "" if value.low == value.high else f"{number(value.low)} to {number(value.high)}"


def with_bounds(value: Estimate, unit: str) -> str:
    """A number of `unit`, which may be empty, and its interval behind it where there is one."""
    around = bounds(value)
    return f"{number(value.value)} {unit}".strip() + (f" ({around})" if around else "")


def between(value: Estimate) -> str:
    """An interval of milliseconds with its unit; nothing where there is none."""
    if value.low == value.high:
        return ""
    low, high = duration(value.low), duration(value.high)
    if low.rpartition(" ")[2] == high.rpartition(" ")[2]:
        low = low.rpartition(" ")[0]
    return f"{low} to {high}"


def span(seconds: float) -> str:
    """A length of time: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if seconds < 10:
        return f"{number(seconds, 2)} s"
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


def arrivals(workload: Workload) -> str:
    """How requests come, in words."""
    kind = workload.arrivals
    if isinstance(kind, Closed):
        return f"closed loop, {kind.streams} streams"
    if isinstance(kind, Poisson):
        return f"open loop, Poisson, {kind.rate:.4g} requests/s"
    if isinstance(kind, Gamma):
        return f"open loop, Gamma with cv {kind.cv:g}, {kind.rate:.4g} requests/s"
    if isinstance(kind, AzureGaps):
        return f"open loop, gaps as in the Azure {kind.trace} trace" + (
            f", {kind.rate:g} requests/s" if kind.rate else ""
        )
    return f"open loop, the times of {kind.file}" + (f", {kind.speed:g} × as fast" if kind.speed != 1 else "")


def objective(slo: Slo) -> str:
    """What a good answer is, in words; empty where any whole answer is good."""
    said = [
        f"{what} ≤ {bound:,g} ms"
        for what, bound in (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms), ("E2E", slo.e2e_ms))
        if bound
    ]
    return ", ".join(said)
