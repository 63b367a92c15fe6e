"""Two results of one workload, paired: is B faster or slower than A, by how much, and how sure is that?

Requests of both are the same ones, repeat by repeat, so differences are taken within pairs: what all requests of a
repeat have in common, such as a machine that was slower by then, cancels. With enough repeats the pairs are repeats and
chance is judged by flipping their signs (Fisher, The Design of Experiments, 1935, section 21); with few they are blocks
of requests, drawn again and again, which doesn't know how runs differ.

A dozen numbers are compared, and of two servers that are the same one would differ "at 5 %" every other time. So chance
is judged for all numbers together: a difference is shown when, of two servers that are the same, fewer than 5
comparisons in 100 would show any. Over repeats by the largest of all numbers under the same flips (the step-down maxT
procedure: Westfall and Young, Resampling-Based Multiple Testing, 1993, algorithm 4.1; Ge, Dudoit and Speed,
Resampling-based multiple testing for microarray data analysis, 2003, box 4), which takes into account that latencies
move together and so costs little; over blocks by Holm (A simple sequentially rejective multiple test procedure, 1979).
Intervals are of each number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np

from livery_loadtest.columns import Columns, Floats, Ints, joined
from livery_loadtest.figures import Measured, by_request, cached_share, meets, pooled
from livery_loadtest.intervals import LEVEL, RESAMPLES, Blocks, Estimate, t_quantile
from livery_loadtest.pairing import Pair, check_same_workload, interruptions, only_target, other_names, paired
from livery_loadtest.report.result import Result
from livery_loadtest.spec import Slo

# Of the 2**n ways to give n differences signs, two are as extreme as all alike: 5 repeats can't show anything at 5 %.
ENOUGH_PAIRS = 6
_MOST_EXACT = 14
_FLIPS = 10_000
_SEED = 8
_CACHED_ALIKE = 0.1  # of the prompts' tokens


class Verdict(StrEnum):
    """What was shown of B beside A."""

    FASTER = "faster"
    SLOWER = "slower"
    MORE = "more"
    FEWER = "fewer"
    NOTHING = "no difference shown"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of both: `ratio` is B / A with its 95 % interval, that of this number alone.

    `p_alone` is how often chance gives as much in this number, `p` how often it gives as much in any of those compared,
    by which the verdict goes.
    """

    name: str
    unit: str
    a: float | None
    b: float | None
    ratio: Estimate | None
    p_alone: float | None
    p: float | None
    verdict: Verdict
    better: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """B beside A. `pairs` says in words what was paired and how chance was judged, `cached` what caches explain.

    `names` are those that are others at B.
    """

    a: str
    b: str
    workload: str
    repeats: int
    requests: int
    pairs: str
    metrics: tuple[Metric, ...]
    doubts: tuple[str, ...] = ()
    cached: str = ""
    names: str = ""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a number is taken of one repeat: the share `at` of values a request or a gap has, or a sum over a sum."""

    name: str
    unit: str
    up_is_good: bool
    values: Callable[[Columns], tuple[Floats, Ints]] | None = None
    at: float = 0.5
    sums: Callable[[Measured], tuple[Floats, Floats]] | None = None
    timed: bool = False  # by the seconds that all of a repeat's requests took


@dataclass(frozen=True, slots=True)
class _Judged:
    """One number of both before all are looked at together: `p_alone` is None where nothing can be said of chance."""

    kind: _Kind
    a: float | None
    b: float | None
    ratio: Estimate | None = None
    p_alone: float | None = None


_Family = tuple[list[_Judged], list[float | None]]  # all numbers, and p of each for all of them together


def compare(a: Result, b: Result, target_a: str = "", target_b: str = "") -> Comparison:
    """B beside A; the targets have to be named where a result has several. Raises NotComparable."""
    check_same_workload(a, b)
    name_a, name_b = only_target(a, target_a, "first"), only_target(b, target_b, "second")
    pairs = paired(a.measured[name_a], b.measured[name_b], a.workload.conversations is not None)
    base_a, base_b = (
        next(one.base for one in result.targets if one.name == name) for result, name in ((a, name_a), (b, name_b))
    )
    names = other_names(pairs, base_a, base_b)
    slo = a.workload.slo
    exact = len(pairs) >= ENOUGH_PAIRS
    judged, together = (_over_repeats if exact else _over_blocks)(_kinds(slo), pairs)
    doubts = [f"A: {doubt}" for doubt in a.doubts_of(name_a)] + [f"B: {doubt}" for doubt in b.doubts_of(name_b)]
    doubts += interruptions(pairs, name_a, name_b)
    return Comparison(
        a=name_a,
        b=name_b,
        workload=a.workload.name,
        repeats=len(pairs),
        requests=sum(len(pair.a.columns) for pair in pairs),
        pairs=_said(len(pairs), exact),
        metrics=tuple(_metric(one, p) for one, p in zip(judged, together, strict=True)),
        doubts=tuple(doubts),
        cached=_cached(pairs),
        names=names,
    )


def _cached(pairs: Sequence[Pair]) -> str:
    """What to think of where one server had much more of the prompts in its cache; empty where none had, or told."""
    a, b = (cached_share([pair.both[side].columns for pair in pairs]) for side in (0, 1))
    if a is None or b is None or abs(a - b) <= _CACHED_ALIKE:
        return ""
    more = "A" if a > b else "B"
    return (
        f"{a:.0%} of the prompts' tokens came from A's cache, {b:.0%} from B's: if {more} had been asked this before, "
        "it is faster for that alone. Start a server anew before it is measured."
    )


def _said(repeats: int, exact: bool) -> str:
    if exact:
        how = "all" if repeats <= _MOST_EXACT else f"{_FLIPS:,} random"
        return f"paired by repeat, {repeats} of them; p by {how} flips of their signs, for all numbers at once (maxT)"
    said = "1 repeat" if repeats == 1 else f"{repeats} repeats"
    return (
        f"paired by request, {said}; p by bootstrap over blocks of requests, for all numbers together (Holm); it "
        f"doesn't know how runs differ: {ENOUGH_PAIRS} repeats or more say that"
    )


def _kinds(slo: Slo) -> list[_Kind]:
    """What is compared. Latencies at their middle and at their slow end, then what was got done."""
    found = []
    values: tuple[tuple[str, Callable[[Columns], tuple[Floats, Ints]]], ...] = (
        ("TTFT", by_request("ttft")),
        ("ITL", Columns.gaps),
        ("TPOT", by_request("tpot")),
        ("E2E", by_request("e2e")),
    )
    for name, of in values:
        found += [_Kind(f"{name} p{100 * at:.0f}", "ms", False, of, at) for at in (0.5, 0.99)]
    found.append(_Kind("output tokens", "per second", True, sums=_tokens, timed=True))
    found.append(_Kind("requests", "per second", True, sums=_requests, timed=True))
    if slo != Slo():
        found.append(_Kind("good answers", "share", True, sums=lambda one: _good(one, slo)))
    found.append(_Kind("failed requests", "share", False, sums=_failed))
    return found


def _tokens(one: Measured) -> tuple[Floats, Floats]:
    tokens = np.where(one.columns.answered, one.columns.tokens, 0).astype(np.float64)
    return tokens, np.full(len(tokens), one.seconds / max(len(tokens), 1))


def _requests(one: Measured) -> tuple[Floats, Floats]:
    whole = one.columns.whole.astype(np.float64)
    return whole, np.full(len(whole), one.seconds / max(len(whole), 1))


def _good(one: Measured, slo: Slo) -> tuple[Floats, Floats]:
    return meets(one.columns, slo).astype(np.float64), (~one.columns.left).astype(np.float64)


def _failed(one: Measured) -> tuple[Floats, Floats]:
    return (~one.columns.answered).astype(np.float64), np.ones(len(one.columns))


def _sides(kind: _Kind, pairs: Sequence[Pair]) -> list[tuple[Measured, Measured] | None]:
    """What a number is taken of: a rate of whole runs, None where there are none; others of what both have."""
    return [pair.ran if kind.timed else pair.both for pair in pairs]


def _over_repeats(kinds: Sequence[_Kind], pairs: Sequence[Pair]) -> _Family:
    """From one number a repeat and side: mean log ratios with their t intervals, p by flipping the repeats' signs.

    Where a number is 0 in some repeat, which then has no ratio, differences take the place of ratios. A repeat without
    any such value says nothing of it: its difference is 0, which no flip changes.
    """
    judged, rows = [], []
    for kind in kinds:
        sides = _sides(kind, pairs)
        values = [(_value(kind, [one[0]]), _value(kind, [one[1]])) if one else (None, None) for one in sides]
        known = [place for place, (x, y) in enumerate(values) if x is not None and y is not None]
        x, y = (np.asarray([values[place][side] for place in known], dtype=np.float64) for side in (0, 1))
        if not known:
            a, b = (_value(kind, [one[side] for one in sides if one]) for side in (0, 1))
            judged.append(_Judged(kind, a, b))
            continue
        with_ratio = bool(np.all(x > 0) and np.all(y > 0))
        found = np.log(y / x) if with_ratio else y - x
        differences = np.zeros(len(pairs))
        differences[known] = found
        rows.append(differences)
        ratio = _mean_ratio(found) if with_ratio and len(found) >= ENOUGH_PAIRS else None
        judged.append(_Judged(kind, float(x.mean()), float(y.mean()), ratio, sign_flips(differences)))
    return judged, _spread(judged, sign_flips_together(np.asarray(rows)) if rows else [])


def _mean_ratio(logs: Floats) -> Estimate:
    half = t_quantile(len(logs) - 1) * float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    middle = float(logs.mean())
    return Estimate(*(float(np.exp(value)) for value in (middle, middle - half, middle + half)))


def _spread(judged: Sequence[_Judged], adjusted: Sequence[float]) -> list[float | None]:
    """What was found together, in the places of the numbers of which anything can be said."""
    some = iter(adjusted)
    return [None if one.p_alone is None else next(some) for one in judged]


def _flips(pairs: int) -> Floats:
    """[ways, pairs] of signs: all ways up to 14 pairs, else random ones, the first of them as observed."""
    if pairs <= _MOST_EXACT:
        return np.asarray(list(product((1.0, -1.0), repeat=pairs)))
    signs = np.random.default_rng(_SEED).choice((-1.0, 1.0), (1 + _FLIPS, pairs))
    signs[0] = 1.0
    return signs


def sign_flips(differences: Floats) -> float:
    """How often the mean of paired differences is as far from 0 when each one's sign is left to chance."""
    sums = np.abs(_flips(len(differences)) @ differences)
    return float(np.mean(sums >= sums[0] * (1 - 1e-12)))


def sign_flips_together(differences: Floats) -> list[float]:
    """The same of several numbers, [numbers, pairs], whose signs flip together: how often any is as far from 0.

    Step-down maxT with |sum| / root of the sum of squares, which grows with Student's t: numbers from the farthest to
    the nearest, each beside the farthest flip of itself and those after it, and never surer than the one before it.
    """
    scale = np.sqrt(np.sum(differences**2, axis=1))
    sums = np.abs(differences @ _flips(differences.shape[1]).T)
    far = np.divide(sums, scale[:, None], out=np.zeros_like(sums), where=scale[:, None] > 0)
    order = np.argsort(-far[:, 0], kind="stable")
    farthest = np.maximum.accumulate(far[order][::-1], axis=0)[::-1]
    alone = np.mean(farthest >= far[order, :1] * (1 - 1e-12), axis=1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(alone)
    return [float(p) for p in adjusted]


def _over_blocks(kinds: Sequence[_Kind], pairs: Sequence[Pair]) -> _Family:
    """From blocks of requests, drawn alike on both sides: the ratio's interval, and p by how often it crosses 1."""
    judged = [_drawn_again(kind, pairs) for kind in kinds]
    return judged, _spread(judged, holm([one.p_alone for one in judged if one.p_alone is not None]))


def holm(alone: Sequence[float]) -> list[float]:
    """p-values adjusted for all being looked at: the k-th smallest of m times m - k + 1, never below the one before."""
    order = np.argsort(alone, kind="stable")
    stepped = np.asarray(alone, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(p) for p in adjusted]


def _drawn_again(kind: _Kind, pairs: Sequence[Pair]) -> _Judged:
    known = [one for one in _sides(kind, pairs) if one]
    sides = [[one[side] for one in known] for side in (0, 1)]
    a, b = (_value(kind, side) for side in sides)
    unpaired = kind.values is Columns.gaps and any(len(one.columns.folded) for side in sides for one in side)
    unpaired |= kind.timed and not all(pair.alike for pair in pairs if pair.ran)
    if a is None or b is None or unpaired:  # whose gaps folded ones are isn't known, nor what was cut off beside what
        return _Judged(kind, a, b)
    blocks = Blocks([len(one.columns) for one in sides[0]], _SEED)
    drawn = [_drawn(kind, side, blocks) for side in sides]
    if a <= 0 or b <= 0:
        return _Judged(kind, a, b, p_alone=1.0 if a == b else _crossing(drawn[1] - drawn[0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[1] / drawn[0]
    ratios = ratios[np.isfinite(ratios)]
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ratio = Estimate(b / a, min(b / a, float(low)), max(b / a, float(high)))
    return _Judged(kind, a, b, ratio, _crossing(ratios - 1))


def _crossing(differences: Floats) -> float:
    """Twice the share of draws on the rarer side of 0, at least what so many draws can tell."""
    some = differences[np.isfinite(differences)]
    if not len(some):
        return 1.0
    rarer = min(int(np.sum(some <= 0)), int(np.sum(some >= 0)))
    return min(1.0, 2 * (1 + rarer) / (1 + len(some)))


def _value(kind: _Kind, repeats: Sequence[Measured]) -> float | None:
    if kind.values is not None:
        values, _ = pooled([one.columns for one in repeats], kind.values)
        return float(1000 * np.quantile(values, kind.at)) if len(values) else None
    above, below = _sums(kind, repeats)
    return float(above.sum() / below.sum()) if below.sum() else None


def _drawn(kind: _Kind, repeats: Sequence[Measured], blocks: Blocks) -> Floats:
    """[RESAMPLES] the number, of blocks drawn again."""
    if kind.values is not None:
        values, items = pooled([one.columns for one in repeats], kind.values)
        drawn: Floats = blocks.percentiles(1000 * values, items, [kind.at])[0]
        return drawn
    if not len(blocks.place):
        return np.full(RESAMPLES, np.nan)
    return blocks.ratios(*_sums(kind, repeats))


def _sums(kind: _Kind, repeats: Sequence[Measured]) -> tuple[Floats, Floats]:
    assert kind.sums is not None
    parts = [kind.sums(one) for one in repeats]
    return joined([above for above, _ in parts]), joined([below for _, below in parts])


def _metric(one: _Judged, p: float | None) -> Metric:
    """What is shown of a number, `p` being adjusted for the others."""
    kind, a, b = one.kind, one.a, one.b
    if a is None or b is None or p is None:
        return Metric(kind.name, kind.unit, a, b, one.ratio, one.p_alone, p, Verdict.UNKNOWN)
    if p >= 1 - LEVEL or a == b:
        return Metric(kind.name, kind.unit, a, b, one.ratio, one.p_alone, p, Verdict.NOTHING)
    better = (b > a) == kind.up_is_good
    if kind.unit == "share":
        verdict = Verdict.MORE if b > a else Verdict.FEWER
    else:
        verdict = Verdict.FASTER if better else Verdict.SLOWER
    return Metric(kind.name, kind.unit, a, b, one.ratio, one.p_alone, p, verdict, better)
