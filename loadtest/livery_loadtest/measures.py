"""Numbers from records: percentiles, throughput, ratios. Pure functions; times in seconds go in, milliseconds
come out under names that say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from livery_loadtest.client import Record


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Spread:
    """One number over several rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a set of records amounts to.

    Only answers without an error count as tokens and latencies; the others are in `errors` by kind, one
    message of each kind in `error_examples`. `seconds` runs from the first request sent to the last one done.
    `tpot_ms` is per request (last chunk - first chunk) / (tokens - 1), `itl_ms` is over the gaps between
    chunks. `distinct_models` is the time-weighted mean of distinct models under way. `off_length` counts
    answers with another number of tokens than asked for, `more_chunks_than_tokens` answers whose usage
    can't be right, `usage_missing` answers without usage (their chunks were counted instead).
    """

    requests: int
    completed: int
    errors: dict[str, int]
    error_examples: dict[str, str]
    seconds: float
    prompt_tokens: int
    output_tokens: int
    text_chunks: int
    tokens_per_second: float
    requests_per_second: float
    distinct_models: float
    ttft_ms: Percentiles | None
    itl_ms: Percentiles | None
    tpot_ms: Percentiles | None
    e2e_ms: Percentiles | None
    off_length: int = 0
    more_chunks_than_tokens: int = 0
    usage_missing: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)


def percentiles(seconds: Sequence[float]) -> Percentiles | None:
    """p50, p90 and p99 in milliseconds, linear between neighbours; None for no values."""
    if not seconds:
        return None
    p50, p90, p99 = np.percentile(np.asarray(seconds, dtype=float) * 1000, [50, 90, 99])
    return Percentiles(float(p50), float(p90), float(p99))


def over_rounds(values: Sequence[float]) -> Spread | None:
    """Median, lowest and highest; None for no values."""
    if not values:
        return None
    return Spread(float(np.median(values)), min(values), max(values))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread | None:
    """Ratios round by round, so that drift of the machine cancels; a round with a zero below is left out."""
    pairs = zip(numerators, denominators, strict=True)
    return over_rounds([above / below for above, below in pairs if below > 0])


def busy_seconds(rounds: Sequence[Sequence[Record]]) -> float:
    """The summed duration of the rounds."""
    return sum(max(r.finished for r in records) - min(r.started for r in records) for records in rounds if records)


def distinct_under_way(records: Sequence[Record]) -> float:
    """How many different models were being answered, averaged over the time any request was."""
    events = sorted(
        [(record.started, 1, record.model) for record in records]
        + [(record.finished, -1, record.model) for record in records]
    )
    running: Counter[str] = Counter()
    area = busy = 0.0
    for (time, change, model), (until, _, _) in pairwise(events):
        running[model] += change
        distinct = sum(1 for count in running.values() if count > 0)
        area += distinct * (until - time)
        busy += (until - time) if distinct else 0.0
    return area / busy if busy else 0.0


def summarise(rounds: Sequence[Sequence[Record]], expected_tokens: int | None = None) -> Summary:
    """Pool the records of one or several rounds.

    `expected_tokens` is the exact length of every answer where the requests ask for one.
    """
    records = [record for round_records in rounds for record in round_records]
    good = [record for record in records if record.error is None]
    failed = [record for record in records if record.error is not None]
    seconds = busy_seconds(rounds)
    tokens = sum(record.output_tokens for record in good)
    weights = [busy_seconds([one]) for one in rounds]
    distinct = [distinct_under_way(one) for one in rounds]
    off_length = [r for r in good if expected_tokens is not None and r.output_tokens != expected_tokens]
    return Summary(
        requests=len(records),
        completed=len(good),
        errors=dict(Counter(str(record.error) for record in failed)),
        error_examples={str(record.error): record.error_message for record in reversed(failed)},
        seconds=seconds,
        prompt_tokens=sum(record.prompt_tokens for record in good),
        output_tokens=tokens,
        text_chunks=sum(len(record.arrivals) for record in good),
        tokens_per_second=tokens / seconds if seconds else 0.0,
        requests_per_second=len(good) / seconds if seconds else 0.0,
        distinct_models=float(np.average(distinct, weights=weights)) if seconds else 0.0,
        ttft_ms=percentiles([record.arrivals[0] - record.started for record in good if record.arrivals]),
        itl_ms=percentiles([b - a for record in good for a, b in pairwise(record.arrivals)]),
        tpot_ms=percentiles([_time_per_token(r) for r in good if len(r.arrivals) > 1 and r.output_tokens > 1]),
        e2e_ms=percentiles([record.finished - record.started for record in good]),
        off_length=len(off_length),
        more_chunks_than_tokens=sum(len(record.arrivals) > record.output_tokens for record in good),
        usage_missing=sum(record.usage_missing for record in good),
        finish_reasons=dict(Counter(str(record.finish_reason) for record in good)),
    )


def _time_per_token(record: Record) -> float:
    return (record.arrivals[-1] - record.arrivals[0]) / (record.output_tokens - 1)
