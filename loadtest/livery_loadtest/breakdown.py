"""What each adapter and each tenant got: traffic, latencies, fairness, cold starts, how many adapters at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from livery_loadtest.columns import Columns, Floats, Ints, joined

SHOWN = 20
COMPARED_TENANTS = 8


@dataclass(frozen=True, slots=True)
class Group:
    """The requests of one adapter or tenant; `folded` above 0: of so many that are not shown one by one."""

    name: str
    folded: int
    requests: int
    failed: int
    output_tokens: int
    tokens_per_second: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    e2e_p50_ms: float | None
    e2e_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Fairness:
    """How evenly tenants were served, in output tokens divided by their weights in the workload.

    `jain` is Jain's index (sum x)^2 / (n sum x^2): 1 is even, 1/n all for one. `largest_lag_tokens` is how far two
    tenants' services drew apart at most while both waited, that is, had a request without its first token; `between`
    names them, the one ahead first. Sources: Jain, Chiu and Hawe, DEC-TR-301 (1984); Sheng et al., "Fairness in
    Serving Large Language Models" (OSDI 2024), for services compared over stretches in which both are backlogged.
    """

    jain: float
    largest_lag_tokens: float
    between: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class ColdStarts:
    """TTFT of requests that were the first for an adapter kept for that, and of all others, in milliseconds."""

    cold: int
    cold_p50_ms: float | None
    cold_p99_ms: float | None
    warm: int
    warm_p50_ms: float | None
    warm_p99_ms: float | None


def adapter_groups(parts: Sequence[Columns], seconds: float) -> tuple[Group, ...]:
    """By model, the busiest first, the rest of them in one group at the end."""
    return _groups(parts, seconds, [(one.model, one.models) for one in parts])


def tenant_groups(parts: Sequence[Columns], seconds: float) -> tuple[Group, ...]:
    """By tenant, the busiest first; none where requests have none."""
    return _groups(parts, seconds, [(one.tenant, one.tenants) for one in parts])


def _groups(
    parts: Sequence[Columns], seconds: float, coded: Sequence[tuple[Ints, tuple[str, ...]]]
) -> tuple[Group, ...]:
    names = list(dict.fromkeys(name for _, some in coded for name in some))
    if not names:
        return ()
    place = {name: index for index, name in enumerate(names)}
    codes = np.concatenate(
        [np.append(np.asarray([place[name] for name in some], dtype=np.int64), -1)[code] for code, some in coded]
    )
    requests = np.bincount(codes[codes >= 0], minlength=len(names))
    order = np.argsort(-requests, kind="stable")
    alone = SHOWN if len(names) > SHOWN + 1 else len(names)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.minimum(np.arange(len(names)), alone)
    labels = [(names[index], 0) for index in order[:alone]]
    if len(names) > alone:
        labels.append((f"{len(names) - alone} others", len(names) - alone))
    place_of = np.where(codes >= 0, rank[codes], -1)
    columns = {
        name: joined([getattr(one, name) for one in parts]).astype(np.float64)
        for name in ("ttft", "tpot", "e2e", "tokens", "answered")
    }
    return tuple(_group(label, folded, place_of == row, columns, seconds) for row, (label, folded) in enumerate(labels))


def _group(
    name: str, folded: int, some: np.ndarray[tuple[int], np.dtype[np.bool_]], of: Mapping[str, Floats], seconds: float
) -> Group:
    answered = of["answered"][some] > 0
    tokens = int(of["tokens"][some][answered].sum())
    return Group(
        name=name,
        folded=folded,
        requests=int(some.sum()),
        failed=int((~answered).sum()),
        output_tokens=tokens,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        ttft_p50_ms=milliseconds(of["ttft"][some], 0.5),
        ttft_p99_ms=milliseconds(of["ttft"][some], 0.99),
        tpot_p50_ms=milliseconds(of["tpot"][some], 0.5),
        e2e_p50_ms=milliseconds(of["e2e"][some], 0.5),
        e2e_p99_ms=milliseconds(of["e2e"][some], 0.99),
    )


def milliseconds(seconds: Floats, share: float) -> float | None:
    """A percentile of what is known, in milliseconds; None where nothing is."""
    known = seconds[np.isfinite(seconds)]
    return float(1000 * np.quantile(known, share)) if len(known) else None


def cold_starts(parts: Sequence[Columns]) -> ColdStarts | None:
    """None where the workload has no cold arrivals."""
    cold = joined([one.ttft[one.cold] for one in parts])
    if not any(one.cold.any() for one in parts):
        return None
    warm = joined([one.ttft[~one.cold] for one in parts])
    return ColdStarts(
        len(cold),
        milliseconds(cold, 0.5),
        milliseconds(cold, 0.99),
        len(warm),
        milliseconds(warm, 0.5),
        milliseconds(warm, 0.99),
    )


def covered(begins: Floats, ends: Floats, depth: int = 1) -> tuple[Floats, Floats]:
    """The stretches of time in which at least `depth` of the given ones are under way, in order and apart."""
    times = np.concatenate([begins, ends])
    steps = np.concatenate([np.ones(len(begins), np.int64), -np.ones(len(ends), np.int64)])
    order = np.lexsort((-steps, times))  # at one moment beginnings first, so that stretches that touch are one
    running = np.cumsum(steps[order])
    before = running - steps[order]
    times = times[order]
    return times[(before < depth) & (running >= depth)], times[(before >= depth) & (running < depth)]


def distinct_under_way(columns: Columns) -> float:
    """How many different models were being answered, averaged over the time any request was."""
    known = np.isfinite(columns.sent) & np.isfinite(columns.finished)
    each = 0.0
    order = np.argsort(columns.model[known], kind="stable")
    models = columns.model[known][order]
    sent, finished = columns.sent[known][order], columns.finished[known][order]
    for some in np.split(np.arange(len(models)), np.flatnonzero(np.diff(models)) + 1):
        begins, ends = covered(sent[some], finished[some])
        each += float((ends - begins).sum())
    begins, ends = covered(sent, finished)
    busy = float((ends - begins).sum())
    return each / busy if busy else 0.0


def fairness(parts: Sequence[Columns], weights: Mapping[str, float]) -> Fairness | None:
    """Over all repeats, the largest lag within any of them; None for less than two tenants."""
    names = list(dict.fromkeys(name for one in parts for name in one.tenants))
    if len(names) < 2:
        return None
    served = np.zeros(len(names))
    for one in parts:
        for code, name in enumerate(one.tenants):
            mine = (one.tenant == code) & one.answered
            served[names.index(name)] += one.tokens[mine].sum() / weights.get(name, 1.0)
    lags = [_largest_lag(one, weights) for one in parts]
    lag, between = max(lags, key=lambda found: found[0])
    return Fairness(jain(served), lag, between)


def jain(served: Floats) -> float:
    """Jain's index; 1 where nobody was served."""
    squares = float((served**2).sum())
    return float(served.sum()) ** 2 / (len(served) * squares) if squares else 1.0


def _largest_lag(columns: Columns, weights: Mapping[str, float]) -> tuple[float, tuple[str, str] | None]:
    """Between any two of the COMPARED_TENANTS busiest tenants of one repeat."""
    busiest = np.argsort(-np.bincount(columns.tenant[columns.tenant >= 0], minlength=len(columns.tenants)))
    tokens = columns.tokens_by_event()
    owners = columns.tenant[columns.owners]
    order = np.argsort(columns.arrivals, kind="stable")
    times, owners, tokens = columns.arrivals[order], owners[order], tokens[order]
    waited_to = np.where(np.isfinite(columns.first), columns.first, columns.finished)
    waits = np.isfinite(columns.sent) & np.isfinite(waited_to)
    waiting, service = {}, {}
    for code in busiest[:COMPARED_TENANTS]:
        mine = waits & (columns.tenant == code)
        waiting[code] = covered(columns.sent[mine], waited_to[mine])
        events = owners == code
        service[code] = (times[events], tokens[events] / weights.get(columns.tenants[code], 1.0))
    largest, between = 0.0, None
    for one, other in combinations(waiting, 2):
        begins, ends = (np.concatenate(pair) for pair in zip(waiting[one], waiting[other], strict=True))
        begins, ends = covered(begins, ends, depth=2)
        lag = lag_within(service[one], service[other], begins, ends)
        if abs(lag) > largest:
            ahead = (one, other) if lag > 0 else (other, one)
            largest, between = abs(lag), (columns.tenants[ahead[0]], columns.tenants[ahead[1]])
    return largest, between


def lag_within(one: tuple[Floats, Floats], other: tuple[Floats, Floats], begins: Floats, ends: Floats) -> float:
    """How far two services drew apart at most within any of these stretches; positive where the first came ahead.

    A service is times in order and amounts. Over any part of a stretch the difference of what both got is that of two
    values of their running difference, so the widest is that between its extremes.
    """
    if not len(begins):
        return 0.0
    times = np.concatenate([one[0], other[0]])
    order = np.argsort(times, kind="stable")
    apart = np.concatenate([[0.0], np.cumsum(np.concatenate([one[1], -other[1]])[order])])
    times = times[order]
    first = np.searchsorted(times, begins, side="left")
    lengths = np.searchsorted(times, ends, side="right") + 1 - first
    stretch = np.repeat(np.arange(len(first)), lengths)
    within = apart[np.arange(len(stretch)) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)]
    # One pass over all stretches: each lies so far below, or above, the one before that no extreme is carried over.
    shift = stretch * (float(np.ptp(within)) + 1.0)
    rise = float((within - shift - np.minimum.accumulate(within - shift)).max())
    fall = float((np.maximum.accumulate(within + shift) - within - shift).max())
    return rise if rise >= fall else -fall
