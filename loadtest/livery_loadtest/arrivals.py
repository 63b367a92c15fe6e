"""When requests come: times in seconds after the start of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from livery_loadtest.kinds import MOST_REQUESTS
from livery_loadtest.spec import AzureGaps, Gamma, Poisson, SpecInvalid, Trace
from livery_loadtest.traces import Floats, TraceRows, azure_2023, draw, read_trace

CHUNK = 1 << 14  # gaps drawn at once


def replayed(trace: Trace, requests: int, duration_s: float) -> TraceRows:
    """The part of a trace that a run needs, or what there is of it, its times those of the run; 0 is no bound.

    Raises SpecInvalid.
    """
    until_s = trace.start_s + duration_s * trace.speed if duration_s else float("inf")
    # One more than can be run, so that a trace that is too long is told from one that fits.
    rows = read_trace(Path(trace.file), trace.start_s, until_s, requests or MOST_REQUESTS + 1)
    _check_count(len(rows.times))
    return TraceRows((rows.times - trace.start_s) / trace.speed, rows.prompts, rows.outputs)


def open_times(
    arrivals: Poisson | Gamma | AzureGaps, requests: int, duration_s: float, rng: np.random.Generator
) -> Floats:
    """Rising times of `requests` requests, or of those before `duration_s`, whichever are fewer; 0 is no bound.

    Raises SpecInvalid where that is none, or more than can be run.
    """
    gaps = _gaps(arrivals, rng)
    most = requests or MOST_REQUESTS + 1
    chunks: list[Floats] = []
    now, count = 0.0, 0
    while count < most and (not duration_s or now < duration_s):
        chunks.append(now + np.cumsum(gaps(CHUNK)))
        now, count = float(chunks[-1][-1]), count + CHUNK
    times = np.concatenate(chunks)[:most]
    if duration_s:
        times = times[: np.searchsorted(times, duration_s)]
    _check_count(len(times))
    if not len(times):
        raise SpecInvalid(f"no request arrives within duration_s {duration_s:g}; raise it or the rate of `arrivals`")
    return times


def _gaps(arrivals: Poisson | Gamma | AzureGaps, rng: np.random.Generator) -> Callable[[int], Floats]:
    """A source of seconds between requests."""
    if isinstance(arrivals, Poisson):
        return lambda count: rng.exponential(1 / arrivals.rate, count)
    if isinstance(arrivals, Gamma):
        # S-LoRA's benchmarks (trace.py) have the same: mean 1 / rate, standard deviation cv / rate.
        square = arrivals.cv**2
        return lambda count: rng.gamma(1 / square, square / arrivals.rate, count)
    summary = getattr(azure_2023(), arrivals.trace).gap_s
    stretch = 1 / (arrivals.rate * summary.mean) if arrivals.rate else 1.0
    return lambda count: draw(summary, count, rng) * stretch


def _check_count(count: int) -> None:
    if count > MOST_REQUESTS:
        raise SpecInvalid(f"over {MOST_REQUESTS:,} requests in one run; lower `duration_s` or give `requests`")
