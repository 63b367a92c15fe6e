"""The numbers of one target: what its repeats amount to, with intervals. Milliseconds under names that say so.

Latencies count from the intended time: the planned one in an open loop, when its stream was free in a closed one, and
of a chat's later turn the end of its pause; connecting is part of them. Answers of clients that left as planned count
towards TTFT, ITL and tokens, not towards TPOT, E2E and goodput.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from livery_loadtest.breakdown import (
    ColdStarts,
    Fairness,
    Group,
    adapter_groups,
    cold_starts,
    distinct_under_way,
    fairness,
    tenant_groups,
)
from livery_loadtest.columns import BROKEN, NOT_ASKED, PARSED, Columns, Flags, Floats, Ints, joined, told
from livery_loadtest.growth import Growth, growth
from livery_loadtest.intervals import ENOUGH_REPEATS, Blocks, Estimate, how, interval, over_repeats, sums
from livery_loadtest.record import Sample
from livery_loadtest.spec import Slo, Workload

SHARES = (0.50, 0.90, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Measured:
    """One repeat as what is measured of it: `seconds` it took, its requests, the server's samples."""

    repeat: int
    seconds: float
    columns: Columns
    samples: Sequence[Sample] = ()
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds; `values` is the number of values, `most` the largest of them."""

    values: int
    mean: Estimate
    p50: Estimate
    p90: Estimate
    p95: Estimate
    p99: Estimate
    most: float


@dataclass(frozen=True, slots=True)
class Usage:
    """The server's usage beside what was counted, over answers without an error.

    `tokens_per_event` is told tokens by events where usage was told; `more_events_than_tokens` counts answers whose
    usage can't be right. `off_length` counts answers with
    another number of tokens than asked for, where that was exact.
    """

    told_tokens: int
    counted_events: int
    tokens_per_event: float | None
    without_usage: int
    more_events_than_tokens: int
    off_length: int


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """Failed requests of one kind; `retry_after_s` is the median of what they were told to wait."""

    kind: str
    count: int
    example: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Structured:
    """Answers that were to be JSON; `cut` of those that aren't had reached their number of tokens."""

    asked: int
    parsed: int
    cut: int


@dataclass(frozen=True, slots=True)
class Disconnects:
    """Clients that were to leave: `left` did, the others had their whole answer or an error before."""

    planned: int
    left: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What all repeats of one target amount to. `intervals` says in words how its intervals were made.

    `good_per_second` counts whole answers within the workload's SLO; `good_share` is their share of all requests
    whose client stayed. `distinct_adapters` is averaged over the time that any request was under way. `retried`
    requests were sent twice, as the server closed the connection that was kept for them just then.
    """

    target: str
    repeats: int
    intervals: str
    requests: int
    completed: int
    failed: int
    seconds: float
    tokens_per_second: Estimate
    requests_per_second: Estimate
    good_per_second: Estimate
    good_share: Estimate
    ttft_ms: Latency | None
    itl_ms: Latency | None
    tpot_ms: Latency | None
    e2e_ms: Latency | None
    prompt_tokens: int
    output_tokens: int
    cached_share: float | None
    usage: Usage
    errors: tuple[ErrorKind, ...]
    finish_reasons: dict[str, int]
    distinct_adapters: float
    adapters: tuple[Group, ...]
    tenants: tuple[Group, ...]
    fairness: Fairness | None
    cold_starts: ColdStarts | None
    structured: Structured | None
    disconnects: Disconnects | None
    growth: tuple[Growth, ...]
    retried: int = 0


def meets(columns: Columns, slo: Slo) -> Flags:
    """Which requests were answered whole and within every bound that is set."""
    good = columns.whole
    for bound_ms, seconds in ((slo.ttft_ms, columns.ttft), (slo.e2e_ms, columns.e2e)):
        if bound_ms:
            good = good & (seconds * 1000 <= bound_ms)
    if slo.tpot_ms:
        tpot = columns.tpot  # one token has no time per further token
        good = good & (np.isnan(tpot) | (tpot * 1000 <= slo.tpot_ms))
    return good


def summarise(target: str, repeats: Sequence[Measured], workload: Workload) -> Summary:
    """Everything about one target. `repeats` are its runs of the workload, at least one."""
    parts = [one.columns for one in repeats]
    longest = max(repeats, key=lambda one: one.seconds)
    seconds = sum(one.seconds for one in repeats)
    blocks = Blocks([len(one) for one in parts])
    good = [meets(one, workload.slo) for one in parts]
    counted = [~one.left for one in parts]
    return Summary(
        target=target,
        repeats=len(repeats),
        intervals=how(len(repeats)),
        requests=sum(len(one) for one in parts),
        completed=sum(int(one.whole.sum()) for one in parts),
        failed=sum(int((~one.answered).sum()) for one in parts),
        seconds=seconds,
        tokens_per_second=_rate(repeats, [(one.arrivals, one.tokens_by_event()) for one in parts]),
        requests_per_second=_rate(repeats, [_ends(one, one.whole) for one in parts]),
        good_per_second=_rate(repeats, [_ends(one, some) for one, some in zip(parts, good, strict=True)]),
        good_share=_share(blocks, good, counted),
        ttft_ms=_latency(blocks, parts, by_request("ttft")),
        itl_ms=_latency(blocks, parts, Columns.gaps),
        tpot_ms=_latency(blocks, parts, by_request("tpot")),
        e2e_ms=_latency(blocks, parts, by_request("e2e")),
        prompt_tokens=sum(int(told(one.prompt)[one.answered].sum()) for one in parts),
        output_tokens=sum(int(one.tokens[one.answered].sum()) for one in parts),
        cached_share=cached_share(parts),
        usage=_usage(parts, workload.ignore_eos),
        errors=_errors(parts),
        finish_reasons=_finish_reasons(parts),
        distinct_adapters=_averaged([distinct_under_way(one) for one in parts], repeats),
        adapters=adapter_groups(parts, seconds),
        tenants=tenant_groups(parts, seconds),
        fairness=fairness(parts, {one.name: one.share for one in workload.tenants}),
        cold_starts=cold_starts(parts),
        structured=_structured(parts),
        disconnects=_disconnects(parts),
        growth=growth(longest.columns, longest.samples, longest.seconds, workload.slopes),
        retried=sum(int(one.retried.sum()) for one in parts),
    )


def _averaged(values: Sequence[float], repeats: Sequence[Measured]) -> float:
    return float(np.average(values, weights=[max(one.seconds, 1e-9) for one in repeats]))


def _ends(columns: Columns, some: Flags) -> tuple[Floats, Floats]:
    return columns.finished[some], np.ones(int(some.sum()))


def _rate(repeats: Sequence[Measured], happened: Sequence[tuple[Floats, Floats]]) -> Estimate:
    """Something a second: `happened` are the times and amounts in each repeat; within, windows of time are drawn."""
    totals = [float(amounts.sum()) for _, amounts in happened]
    lengths = [max(one.seconds, 1e-9) for one in repeats]
    if len(repeats) >= ENOUGH_REPEATS:
        return over_repeats([amount / seconds for amount, seconds in zip(totals, lengths, strict=True)])
    windows = [max(1, min(100, len(one.columns))) for one in repeats]
    amounts_in, seconds_in = [], []
    for (times, amounts), length, count in zip(happened, lengths, windows, strict=True):
        place = np.clip(times / length * count, 0, count - 1).astype(np.int64)
        amounts_in.append(sums(place, amounts, count))
        seconds_in.append(np.full(count, length / count))
    drawn = Blocks(windows).ratios(joined(amounts_in), joined(seconds_in))
    return interval(sum(totals) / sum(lengths), drawn)


def _share(blocks: Blocks, some: Sequence[Flags], of: Sequence[Flags]) -> Estimate:
    pairs = [(int(part.sum()), int(whole.sum())) for part, whole in zip(some, of, strict=True)]
    if len(pairs) >= ENOUGH_REPEATS and all(whole for _, whole in pairs):
        found = over_repeats([part / whole for part, whole in pairs])
        return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))
    whole = sum(count for _, count in pairs)
    value = sum(count for count, _ in pairs) / whole if whole else 0.0
    above, below = (np.concatenate(side).astype(np.float64) for side in (some, of))
    return interval(value, blocks.ratios(above, below))


def pooled(parts: Sequence[Columns], of: Callable[[Columns], tuple[Floats, Ints]]) -> tuple[Floats, Ints]:
    """Values of all repeats as one array, and the place of each one's request among all requests."""
    before = np.cumsum([0, *(len(one) for one in parts)])
    pairs = [of(one) for one in parts]
    items = [owners + start for (_, owners), start in zip(pairs, before, strict=False)]
    return joined([values for values, _ in pairs]), np.concatenate(items) if items else np.empty(0, np.int64)


def by_request(name: str) -> Callable[[Columns], tuple[Floats, Ints]]:
    """The known values of a column with one entry a request, and whose they are."""

    def of(columns: Columns) -> tuple[Floats, Ints]:
        values: Floats = getattr(columns, name)
        known = np.flatnonzero(np.isfinite(values))
        return values[known], known

    return of


def _latency(blocks: Blocks, parts: Sequence[Columns], of: Callable[[Columns], tuple[Floats, Ints]]) -> Latency | None:
    values, items = pooled(parts, of)
    if not len(values):
        return None
    each = [1000 * some for some, _ in map(of, parts) if len(some)]
    if len(each) >= ENOUGH_REPEATS:
        mean = over_repeats([float(one.mean()) for one in each])
        shares = [over_repeats([float(value) for value in row]) for row in np.transpose([quantiles(e) for e in each])]
    elif of is Columns.gaps and any(len(one.folded) for one in parts):
        values = 1000 * values  # nobody knows whose they are: no blocks to draw
        mean = interval(float(values.mean()), np.empty(0))
        shares = [interval(float(value), np.empty(0)) for value in quantiles(values)]
    else:
        values = 1000 * values
        total, number = (sums(items, some, len(blocks.place)) for some in (values, np.ones(len(items))))
        mean = interval(float(values.mean()), blocks.ratios(total, number))
        drawn = blocks.percentiles(values, items, SHARES)
        shares = [interval(float(value), row) for value, row in zip(quantiles(values), drawn, strict=True)]
    p50, p90, p95, p99 = shares
    return Latency(len(items), mean, p50, p90, p95, p99, max(float(one.max()) for one in each))


def quantiles(values: Floats) -> Floats:
    """At SHARES, linear between neighbours."""
    return np.quantile(values, SHARES)


def cached_share(parts: Sequence[Columns]) -> float | None:
    """Cached tokens by prompt tokens, over answers that tell both."""
    both = [(one.cached >= 0) & (one.prompt >= 0) & one.answered for one in parts]
    prompt = sum(int(one.prompt[some].sum()) for one, some in zip(parts, both, strict=True))
    cached = sum(int(one.cached[some].sum()) for one, some in zip(parts, both, strict=True))
    return cached / prompt if prompt else None


def _usage(parts: Sequence[Columns], exact: bool) -> Usage:
    told_tokens = counted = events = without = more = off = 0
    for one in parts:
        whole, knows = one.whole, one.output >= 0
        told_tokens += int(one.output[whole & knows].sum())
        counted += int(one.counted[one.answered].sum())
        events += int(one.counted[whole & knows].sum())
        without += int((whole & ~knows).sum())
        more += int((whole & knows & (one.counted > one.output)).sum())
        free = one.structured == NOT_ASKED  # others end where their schema does
        off += int((whole & knows & free & (one.output != one.max_tokens)).sum()) if exact else 0
    return Usage(told_tokens, counted, told_tokens / events if events else None, without, more, off)


def _errors(parts: Sequence[Columns]) -> tuple[ErrorKind, ...]:
    """By kind, the most frequent first."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    waits: dict[str, list[float]] = {}
    for one in parts:
        for code, (kind, example) in enumerate(zip(one.errors, one.examples, strict=True)):
            some = one.error == code
            counts[kind] += int(some.sum())
            examples[kind] = examples.get(kind) or example
            waits.setdefault(kind, []).extend(one.retry_after[some & np.isfinite(one.retry_after)].tolist())
    return tuple(
        ErrorKind(kind, count, examples[kind], float(np.median(waits[kind])) if waits[kind] else None)
        for kind, count in counts.most_common()
    )


def _finish_reasons(parts: Sequence[Columns]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for one in parts:
        for code, reason in enumerate(one.finishes):
            counts[reason] += int(((one.finish == code) & one.answered).sum())
    return dict(counts.most_common())


def _structured(parts: Sequence[Columns]) -> Structured | None:
    asked = parsed = cut = 0
    for one in parts:
        length = one.finishes.index("length") if "length" in one.finishes else -2
        asked += int((one.structured != NOT_ASKED).sum())
        parsed += int((one.structured == PARSED).sum())
        cut += int(((one.structured == BROKEN) & (one.finish == length)).sum())
    return Structured(asked, parsed, cut) if asked else None


def _disconnects(parts: Sequence[Columns]) -> Disconnects | None:
    planned = sum(int(one.planned_leave.sum()) for one in parts)
    return Disconnects(planned, sum(int(one.left.sum()) for one in parts)) if planned else None
