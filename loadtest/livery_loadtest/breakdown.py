"""What each adapter and each tenant got: traffic, latencies, fairness, cold starts, how many adapters at once."""

from __future__ import annotations

from collections import Counter
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
    """How evenly the COMPARED_TENANTS busiest tenants were served: output tokens, by their shares in the workload.

    `jain` is Jain's index (sum x)^2 / (n sum x^2) of what each got by what it was due: 1 is even, 1/n all for one. Due
    is the max-min fair part of what all of them got while the same ones waited, that is, had a request without its
    first token: who doesn't wait is due what it got, or less where others wait and it had more than its share. So who
    asks for little and gets that is served well, and a flood that is served before it isn't. `largest_lag_tokens` is
    how far two tenants' services, each divided by its share, drew apart at most while both waited; `between` names
    them, the one ahead first. Sources: Jain, Chiu and Hawe, DEC-TR-301 (1984), whose index is of allocations by the
    fair ones where demands differ; Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), for services
    compared over stretches in which both are backlogged.
    """

    jain: float
    largest_lag_tokens: float
    between: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Course:
    """How one tenant fared: when it waited, as begins and ends in order and apart, and what it got, times in order."""

    begins: Floats
    ends: Floats
    times: Floats
    amounts: Floats


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


def fairness(parts: Sequence[Columns], shares: Mapping[str, float]) -> Fairness | None:
    """Over all repeats, the largest lag within any; None for less than two tenants. `shares`: 1 unless named."""
    requests: Counter[str] = Counter()
    for one in parts:
        for code, name in enumerate(one.tenants):
            requests[name] += int((one.tenant == code).sum())
    if len(requests) < 2:
        return None
    names = [name for name, _ in requests.most_common(COMPARED_TENANTS)]
    each = np.asarray([shares.get(name, 1.0) for name in names])
    got, fair = np.zeros(len(names)), np.zeros(len(names))
    largest = 0.0
    between: tuple[str, str] | None = None
    for one in parts:
        courses = _courses(one, names)
        received, deserved = due(courses, each)
        got, fair = got + received, fair + deserved
        lag, pair = _largest_lag(courses, each)
        if abs(lag) > largest:
            ahead, behind = pair if lag > 0 else (pair[1], pair[0])
            largest, between = abs(lag), (names[ahead], names[behind])
    asked = fair > 0
    return Fairness(jain(got[asked] / fair[asked]), largest, between)


def jain(served: Floats) -> float:
    """Jain's index; 1 where nobody was served."""
    squares = float((served**2).sum())
    return float(served.sum()) ** 2 / (len(served) * squares) if squares else 1.0


def _courses(columns: Columns, names: Sequence[str]) -> list[Course]:
    """Of each of these tenants in one repeat."""
    tokens = columns.tokens_by_event()
    order = np.argsort(columns.arrivals, kind="stable")
    times, tokens = columns.arrivals[order], tokens[order]
    owners = columns.tenant[columns.owners][order]
    waited_to = np.where(np.isfinite(columns.first), columns.first, columns.finished)
    waits = np.isfinite(columns.begun) & np.isfinite(waited_to)
    courses = []
    for name in names:
        code = columns.tenants.index(name) if name in columns.tenants else len(columns.tenants)
        mine, events = waits & (columns.tenant == code), owners == code
        courses.append(Course(*covered(columns.begun[mine], waited_to[mine]), times[events], tokens[events]))
    return courses


def due(courses: Sequence[Course], shares: Floats) -> tuple[Floats, Floats]:
    """What each got, and what it was due; both [tenants].

    Time is cut where somebody begins or ceases to wait; pieces in which the same ones wait count together, or a token
    here and there would decide. A piece has its end and not its beginning: what ends a wait is got in it.
    """
    edges = np.unique(np.concatenate([edge for one in courses for edge in (one.begins, one.ends)]))
    waiting = np.zeros((len(edges) + 1, len(courses)), np.int64)
    got = np.zeros((len(edges) + 1, len(courses)))
    for place, one in enumerate(courses):
        steps = np.zeros(len(edges) + 2, np.int64)
        np.add.at(steps, np.searchsorted(edges, one.begins) + 1, 1)
        np.add.at(steps, np.searchsorted(edges, one.ends) + 1, -1)
        waiting[:, place] = np.cumsum(steps)[:-1]
        np.add.at(got[:, place], np.searchsorted(edges, one.times), one.amounts)
    fair = np.zeros(len(courses))
    sets, of = np.unique(waiting, axis=0, return_inverse=True)
    for number, who in enumerate(sets):
        together = got[of.reshape(-1) == number].sum(axis=0)
        fair += max_min(float(together.sum()), np.where(who > 0, np.inf, together), shares)
    return got.sum(axis=0), fair


def max_min(amount: float, demands: Floats, shares: Floats) -> Floats:
    """The weighted max-min fair division of an amount, [tenants]: nobody gets more than it demands.

    Source: Bertsekas and Gallager, Data Networks (1992), section 6.5.2, for one resource.
    """
    found = np.zeros(len(demands))
    modest_first = np.argsort(demands / shares, kind="stable")
    still = np.cumsum(shares[modest_first][::-1])[::-1]  # shares of those that have nothing yet
    for place, left in zip(modest_first, still, strict=True):
        found[place] = min(demands[place], amount * shares[place] / left)
        amount -= found[place]
    return found


def _largest_lag(courses: Sequence[Course], shares: Floats) -> tuple[float, tuple[int, int]]:
    """Between any two in one repeat, positive where the first came ahead, and their places."""
    found: tuple[float, tuple[int, int]] = (0.0, (0, 0))
    for one, other in combinations(range(len(courses)), 2):
        pair = courses[one], courses[other]
        begins, ends = (np.concatenate(both) for both in zip(*((of.begins, of.ends) for of in pair), strict=True))
        first, second = ((of.times, of.amounts / shares[place]) for of, place in zip(pair, (one, other), strict=True))
        lag = lag_within(first, second, *covered(begins, ends, depth=2))
        found = max(found, (lag, (one, other)), key=lambda each: abs(each[0]))
    return found


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
