"""What changes with the rate, or with whatever else differs between several workloads: a curve for each target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from livery_loadtest.capacity import Capacity, Trial
from livery_loadtest.figures import Latency, Summary
from livery_loadtest.intervals import Estimate
from livery_loadtest.report.pictures import duration_label
from livery_loadtest.report.plots import Dot, Line, Numbers, Plot, exact, linear, logarithmic
from livery_loadtest.report.result import Result
from livery_loadtest.report.words import duration, number, share
from livery_loadtest.spec import Slo

Of = Callable[[Summary], Estimate | None]
Read = Callable[[float | None], str]


def swept(results: Sequence[Result]) -> tuple[str, list[float]] | None:
    """The one number in which these workloads differ, in words, and its values in the results' order; None: none."""
    if len(results) < 2:
        return None
    kinds = [one.workload.arrivals for one in results]
    for title, values in (
        ("requests per second asked for", [getattr(kind, "rate", None) for kind in kinds]),
        ("streams", [getattr(kind, "streams", None) for kind in kinds]),
        ("times the trace's speed", [getattr(kind, "speed", None) for kind in kinds]),
        ("adapters", [one.workload.adapters or None for one in results]),
    ):
        if None not in values and len(set(values)) == len(values):
            return title, [float(value) for value in values if value is not None]
    return None


def sweep(results: Sequence[Result]) -> list[Plot]:
    """Throughput and latency over what differs between workloads, a line for each target; empty where nothing does."""
    found = swept(results)
    if found is None:
        return []
    kinds: list[tuple[str, Of, Read]] = [
        ("Output tokens per second", lambda one: one.tokens_per_second, number),
        ("Requests per second", lambda one: one.requests_per_second, number),
        ("Time to first token, p50", lambda one: _p50(one.ttft_ms), duration),
        ("Time to first token, p99", lambda one: _p99(one.ttft_ms), duration),
        ("Between tokens, p99", lambda one: _p99(one.itl_ms), duration),
    ]
    if any(result.workload.slo != Slo() for result in results):
        kinds.insert(2, ("Good answers", lambda one: one.good_share, share))
    plots = [_swept(results, found, *kind) for kind in kinds]
    return [plot for plot in plots if plot is not None]


def _p50(latency: Latency | None) -> Estimate | None:
    return latency.p50 if latency else None


def _p99(latency: Latency | None) -> Estimate | None:
    return latency.p99 if latency else None


def _swept(results: Sequence[Result], found: tuple[str, list[float]], title: str, of: Of, read: Read) -> Plot | None:
    x_title, at = found
    names = list(dict.fromkeys(one.target for result in results for one in result.summary))
    lines, dots, rows, colours = [], [], [], []
    for colour, name in enumerate(names):
        points = []
        for x, result in sorted(zip(at, results, strict=True), key=lambda pair: pair[0]):
            summary = next((one for one in result.summary if one.target == name), None)
            estimate = of(summary) if summary else None
            if estimate is None:
                continue
            points.append((x, estimate.value))
            says = f"{name} at {x:g}: {read(estimate.value)}"
            dots.append(Dot(colour, x, estimate.value, says, estimate.low, estimate.high))
            rows.append([f"{x:g}", name, read(estimate.value), f"{read(estimate.low)} to {read(estimate.high)}"])
            colours.append(colour)
        lines.append(Line(name, colour, points))
    if not dots:
        return None
    highest = max(dot.y if dot.high is None else dot.high for dot in dots)
    if read is duration:
        lowest = min(dot.y if dot.low is None else dot.low for dot in dots)
        y = logarithmic("", max(lowest, 1e-3), max(highest, 1e-3), duration_label)  # whole answers at once: 0
    else:
        y = linear("", 0.0, highest, _percent_label if read is share else _label)
    wide = max(at) / max(min(at), 1e-9) > 20
    x_axis = (logarithmic if wide else exact)(x_title, min(at), max(at), _label)
    numbers = Numbers([x_title, "target", title, "95 % interval"], rows, colours=colours)
    return Plot(title, x_axis, y, lines, dots, numbers, reads=(lambda value: f"{value:,g} {x_title}", read))


def searched(found: Capacity) -> Plot | None:
    """The trials of a capacity search: the share of good answers over the rate, and whether the rate held."""
    if not found.trials:
        return None
    dots = [
        Dot(
            0 if trial.holds else 1,
            trial.rate,
            trial.good,
            f"{_label(trial.rate)} a second: {share(trial.good)} good, {_held(trial)}",
        )
        for trial in found.trials
    ]
    rates = sorted((dot.x, dot.y) for dot in dots)
    rows = [[_label(trial.rate), share(trial.good), _held(trial)] for trial in found.trials]
    x = logarithmic("requests per second", rates[0][0], rates[-1][0], lambda value: f"{value:.3g}")
    y = linear("", 0.0, 1.0, _percent_label)
    numbers = Numbers(["requests/s", "good", "held"], rows, words=0)
    note = "each dot is a measurement; the line: the highest rate that held"
    edge = [Line("highest rate that held", 0, [(found.highest, 0.0), (found.highest, 1.0)])] if found.highest else []
    return Plot("Good answers", x, y, edge, dots, numbers, note if edge else "", (_label, share))


def _held(trial: Trial) -> str:
    return "held" if trial.holds else trial.because or "not held"


def _label(value: float) -> str:
    return f"{value:,.4g}"


def _percent_label(value: float) -> str:
    return f"{100 * value:g} %"
