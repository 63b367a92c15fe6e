"""What a result looks like: its numbers as plots, one colour for each target in all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from livery_loadtest.columns import Columns, Floats, joined
from livery_loadtest.figures import Measured
from livery_loadtest.intervals import Estimate
from livery_loadtest.report.plots import (
    Axis,
    Dot,
    Line,
    Numbers,
    Plot,
    exact,
    linear,
    logarithmic,
    nines,
)
from livery_loadtest.report.result import Result
from livery_loadtest.report.words import NOTHING, between, duration, number

_MOMENTS = 150  # of a line over time
_MARKED = (0.5, 0.9, 0.99)


def latencies(result: Result) -> list[Plot]:
    """TTFT, ITL and E2E as cumulative distributions, a line for each target."""
    kinds: tuple[tuple[str, str, Callable[[Columns], Floats]], ...] = (
        ("Time to first token", "ttft_ms", lambda one: one.ttft),
        ("Between tokens", "itl_ms", lambda one: one.gaps()[0]),
        ("End to end", "e2e_ms", lambda one: one.e2e),
    )
    found = [_distribution(result, title, name, of) for title, name, of in kinds]
    return [plot for plot in found if plot is not None]


def _distribution(result: Result, title: str, name: str, of: Callable[[Columns], Floats]) -> Plot | None:
    lines, dots, most = [], [], 0.9
    for colour, (target, repeats) in enumerate(result.measured.items()):
        values: Floats = 1000 * joined([of(one.columns) for one in repeats])
        values = np.maximum(values[np.isfinite(values)], 1e-3)
        if not len(values):
            continue
        last = min(0.9999, 1 - 1 / max(len(values), 10))
        shares = 1 - np.geomspace(0.995, 1 - last, 120)
        points = zip(np.quantile(values, shares).tolist(), shares.tolist(), strict=True)
        lines.append(Line(target, colour, list(points)))
        most = max(most, last)
        latency = getattr(result.summary[colour], name)
        for marked in _MARKED:
            estimate: Estimate = getattr(latency, f"p{100 * marked:.0f}")
            says = f"{target}: p{100 * marked:.0f} {_around(estimate)}"
            dots.append(Dot(colour, float(np.quantile(values, marked)), marked, says))
    if not lines:
        return None
    lowest = min(line.points[0][0] for line in lines)
    highest = max(line.points[-1][0] for line in lines)
    x = logarithmic("", lowest, highest, duration_label)
    reads = (duration, lambda value: f"{100 * value:.4g} %")
    return Plot(title, x, nines("share of answers", most), lines, [d for d in dots if d.y <= most], reads=reads)


def _around(estimate: Estimate) -> str:
    around = between(estimate)
    return duration(estimate.value) + (f" ({around})" if around else "")


def duration_label(milliseconds: float) -> str:
    """A tick: 500 µs, 20 ms, 2 s."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds >= 1 else f"{milliseconds * 1000:.3g} µs"


def latency_numbers(result: Result) -> Numbers:
    """All percentiles of all latencies, a row for each latency and target."""
    rows = []
    for what, name in (
        ("Time to first token", "ttft_ms"),
        ("Between tokens (ITL)", "itl_ms"),
        ("Per token (TPOT)", "tpot_ms"),
        ("End to end", "e2e_ms"),
    ):
        for one in result.summary:
            latency = getattr(one, name)
            cells = [NOTHING] * 5
            if latency is not None:
                estimates = (latency.p50, latency.p90, latency.p95, latency.p99)
                told = [f"{duration(estimate.value)}\n{between(estimate)}" for estimate in estimates]
                cells = [*told, duration(latency.most)]
            rows.append([what, one.target, *cells])
    colours = [place for _ in range(4) for place in range(len(result.summary))]
    return Numbers(["latency", "target", "p50", "p90", "p95", "p99", "most"], rows, colours=colours)


def time_axis(result: Result) -> Axis:
    longest = max((one.seconds for one in result.repeats), default=1.0)
    return exact("seconds after the start", 0.0, longest, lambda value: f"{value:,.6g}")


def over_time(result: Result) -> list[Plot]:
    """Requests under way and tokens a second, averaged over repeats, with the range of these."""
    running = _over_time(result, "Requests under way", _running)
    tokens = _over_time(result, "Output tokens per second", _token_rate)
    return [plot for plot in (running, tokens) if plot is not None]


def _over_time(result: Result, title: str, of: Callable[[Measured, Floats], Floats]) -> Plot | None:
    x = time_axis(result)
    lines = []
    for colour, (target, repeats) in enumerate(result.measured.items()):
        longest = max((one.seconds for one in repeats), default=0.0)
        if not longest:
            continue
        moments = np.linspace(0, longest, min(_MOMENTS, max(2, sum(len(one.columns) for one in repeats))))
        each = np.stack([of(one, moments) for one in repeats])
        middle, low, high = each.mean(axis=0), each.min(axis=0), each.max(axis=0)
        band = list(zip(moments.tolist(), low.tolist(), high.tolist(), strict=True)) if len(repeats) > 1 else ()
        lines.append(Line(target, colour, list(zip(moments.tolist(), middle.tolist(), strict=True)), band))
    if not lines:
        return None
    highest = max(high for line in lines for *_, high in (line.band or line.points))
    note = "mean of the repeats; shaded: lowest to highest" if any(line.band for line in lines) else ""
    y = linear("", 0.0, highest, lambda value: f"{value:,g}")
    return Plot(title, x, y, lines, note=note, reads=(lambda value: f"{value:,.1f} s", number))


def _running(one: Measured, moments: Floats) -> Floats:
    columns = one.columns
    known = np.isfinite(columns.sent) & np.isfinite(columns.finished)
    sent, finished = np.sort(columns.sent[known]), np.sort(columns.finished[known])
    under_way = np.searchsorted(sent, moments, side="right") - np.searchsorted(finished, moments, side="right")
    return under_way.astype(np.float64)


def _token_rate(one: Measured, moments: Floats) -> Floats:
    """In a window about each moment, as wide as three steps and at least a second."""
    half = max(1.5 * float(moments[1] - moments[0]), 0.5)
    order = np.argsort(one.columns.arrivals, kind="stable")
    times = one.columns.arrivals[order]
    passed = np.concatenate([[0.0], np.cumsum(one.columns.tokens_by_event()[order])])
    begin, end = np.maximum(moments - half, 0.0), np.minimum(moments + half, max(one.seconds, half))
    tokens = passed[np.searchsorted(times, end)] - passed[np.searchsorted(times, begin)]
    rate: Floats = tokens / np.maximum(end - begin, 1e-9)
    return rate


def sampled(result: Result) -> list[Plot]:
    """What the server said of itself meanwhile, the first repeat of each target: those of SAMPLED that it has."""
    x = time_axis(result)
    plots = []
    for title, names, divided in SAMPLED:
        lines = []
        for colour, (target, repeats) in enumerate(result.measured.items()):
            samples = repeats[0].samples if repeats else ()
            points = [
                (sample.at, sum(some) / divided)
                for sample in samples
                if (some := [value for key, value in sample.values.items() if key.partition("{")[0] in names])
            ]
            if len(points) > 1:
                lines.append(Line(target, colour, points))
        if lines:
            highest = max(y for line in lines for _, y in line.points)
            y = linear("", 0.0, highest, lambda value: f"{value:,g}")
            plots.append(Plot(title, x, y, lines, reads=(lambda value: f"{value:,.1f} s", number)))
    return plots


# What is drawn of the server's own metrics: title, the names that different servers have for it, divided by.
SAMPLED: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("Resident memory, MiB", ("process_resident_memory_bytes",), 2.0**20),
    ("Requests running", ("vllm:num_requests_running",), 1.0),
    ("Requests waiting", ("vllm:num_requests_waiting",), 1.0),
    ("KV cache in use, share", ("vllm:kv_cache_usage_perc",), 1.0),
    ("Adapters' device memory, MiB", ("livery_adapter_memory_bytes",), 2.0**20),
    ("Open descriptors", ("process_open_fds",), 1.0),
)
