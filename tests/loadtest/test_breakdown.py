"""Who got what: adapters and tenants apart, fairness, cold starts, how many adapters at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.breakdown import (
    SHOWN,
    adapter_groups,
    cold_starts,
    covered,
    distinct_under_way,
    fairness,
    jain,
    lag_within,
    max_min,
    tenant_groups,
)
from livery_loadtest.columns import Columns
from livery_loadtest.record import Record, Run
from livery_loadtest.script import Planned
from loadtest.made_runs import GOOD, Making, made_run
from loadtest.test_figures import START, answer
from loadtest.test_figures import of as summary_of

moments = st.floats(0, 100)
stretches = st.lists(st.tuples(moments, st.floats(0.01, 20)), min_size=1, max_size=12)


def columns(*records: Record) -> Columns:
    return Columns.of(Run("t", 0, START, 10.0, records, GOOD))


def model(index: int, name: str, sent: float, finished: float) -> Record:
    return answer(index, sent, (finished,), 1, model=name)


def test_distinct_adapters_are_weighted_by_time() -> None:
    found = distinct_under_way(
        columns(model(0, "a", 0, 4), model(1, "b", 1, 2), model(2, "a", 1, 3), model(3, "c", 10, 12))
    )
    # a alone for 3 s, a with b for 1 s, nothing for 6 s, c alone for 2 s.
    assert found == pytest.approx((3 * 1 + 1 * 2 + 2 * 1) / 6)
    assert distinct_under_way(columns()) == 0.0


@given(st.lists(st.tuples(st.sampled_from("abcd"), moments, st.floats(0.01, 9)), min_size=1, max_size=25))
def test_distinct_adapters_stay_within_their_bounds(entries: list[tuple[str, float, float]]) -> None:
    found = distinct_under_way(
        columns(*(model(i, name, at + 0.1, at + 0.1 + length) for i, (name, at, length) in enumerate(entries)))
    )
    assert 1 - 1e-6 <= found <= len({name for name, _, _ in entries}) + 1e-6


@given(stretches, st.integers(1, 3))
def test_covered_stretches_are_where_so_many_are_under_way(entries: list[tuple[float, float]], depth: int) -> None:
    begins = np.asarray([at for at, _ in entries])
    ends = begins + np.asarray([length for _, length in entries])
    found_begins, found_ends = covered(begins, ends, depth)
    assert (found_begins <= found_ends).all()
    assert (found_begins[1:] > found_ends[:-1]).all()
    for moment in np.concatenate([begins, ends]):
        for near in (moment - 1e-7, moment + 1e-7):
            running = int(((begins < near) & (near < ends)).sum())
            inside = bool(((found_begins < near) & (near < found_ends)).any())
            beside = np.abs(np.concatenate([begins, ends]) - near).min() < 1e-8
            assert beside or inside == (running >= depth)


def test_adapters_are_apart_and_the_many_small_ones_folded() -> None:
    made = Columns.of(made_run(Making(requests=900, adapters=60, failing=0.05)))
    groups = adapter_groups([made, made], 20.0)
    assert len(groups) == SHOWN + 1
    assert [one.requests for one in groups[:-1]] == sorted((one.requests for one in groups[:-1]), reverse=True)
    rest = groups[-1]
    assert (rest.name, rest.folded) == (f"{len(made.models) - SHOWN} others", len(made.models) - SHOWN)
    assert sum(one.requests for one in groups) == 1800
    assert sum(one.failed for one in groups) == 2 * int((~made.answered).sum())
    assert sum(one.output_tokens for one in groups) == 2 * int(made.tokens[made.answered].sum())
    busiest = made.model == made.models.index(groups[0].name)
    assert groups[0].ttft_p50_ms == pytest.approx(1000 * np.nanmedian(np.tile(made.ttft[busiest], 2)))


def test_tenants_are_apart_and_none_where_there_are_none() -> None:
    tenants = tenant_groups([Columns.of(made_run(Making(tenants=("gold", "free"))))], 10.0)
    assert sorted((one.name, one.requests) for one in tenants) == [("free", 100), ("gold", 100)]
    assert tenant_groups([Columns.of(made_run(Making(tenants=())))], 10.0) == ()


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20), st.floats(0.01, 100))
def test_jains_index(served: list[float], times: float) -> None:
    found = jain(np.asarray(served))
    assert 1 / len(served) - 1e-9 <= found <= 1 + 1e-9
    assert found == pytest.approx(jain(np.asarray(served) * times))
    assert jain(np.full(7, served[0])) == pytest.approx(1)
    assert jain(np.asarray([served[0], 0, 0, 0])) == pytest.approx(1 / 4)


def waiting(index: int, tenant: str, sent: float, first: float, tokens: int) -> Record:
    """Its first event comes at `first` and stands for all of its tokens."""
    return answer(index, sent, (first,), tokens, tenant=tenant)


def test_the_largest_lag_is_between_tenants_that_both_wait() -> None:
    greedy = [waiting(i, "greedy", 0.0, 1.0 + i, 10) for i in range(5)]  # served at 1, 2, 3, 4, 5
    meek = [waiting(9, "meek", 0.0, 4.5, 10)]  # waits until 4.5
    found = fairness([columns(*greedy, *meek)], {})
    assert found is not None
    assert found.largest_lag_tokens == pytest.approx(40)  # at 1, 2, 3 and 4
    assert found.between == ("greedy", "meek")
    x, y = 50 / (25 + 10), 10 / 25  # while both waited 25 each were due, then all for whoever was left
    assert found.jain == pytest.approx((x + y) ** 2 / (2 * (x**2 + y**2)))
    late = fairness([columns(*greedy, waiting(9, "meek", 4.2, 4.5, 10))], {})
    assert late is not None
    assert late.largest_lag_tokens == pytest.approx(10)  # before it waited it was owed nothing


def test_shares_are_what_tenants_are_due_and_traffic_is_not() -> None:
    """All wait until 9 and get 60 and 20 tokens: as it should be where one is entitled to three times the other's."""
    gold = [waiting(0, "gold", 0.0, 1.0, 30), waiting(1, "gold", 0.0, 9.0, 30)]
    free = [waiting(2, "free", 0.0, 1.5, 10), waiting(3, "free", 0.0, 9.0, 10)]
    tenants = [
        {"name": "gold", "key_env": "GOLD", "weight": 1, "share": 3},
        {"name": "free", "key_env": "FREE", "weight": 5},
    ]
    of_shares = summary_of(*gold, *free, tenants=tenants).fairness
    even = fairness([columns(*gold, *free)], {})
    assert of_shares is not None and even is not None
    assert of_shares.jain == pytest.approx(1)
    assert of_shares.largest_lag_tokens == pytest.approx(10)
    assert even.jain == pytest.approx(0.8) and even.largest_lag_tokens == pytest.approx(30 - 10 + 30)
    assert fairness([columns(waiting(0, "gold", 0.0, 1.0, 3))], {}) is None


def served(first: str) -> Columns:
    """A server of four rows, a token a second each: 60 requests of a flood at once, one of another tenant now and then.

    `first` are the tenants of which one is taken before others wait; without any they come in order of arrival.
    """
    coming = [(0, "loud")] * 60 + [(20 * turn, "quiet") for turn in range(1, 7)]
    queue = sorted(enumerate(coming), key=lambda one: one[1][0])
    rows: list[tuple[int, float, str, list[float]]] = []
    records, second = [], 0
    while queue or rows:
        while len(rows) < 4 and (waits := [one for one in queue if one[1][0] <= second]):
            taken = min(waits, key=lambda one: one[1][1] != first)
            queue.remove(taken)
            rows.append((taken[0], taken[1][0], taken[1][1], []))
        second += 1
        for row in list(rows):
            row[3].append(float(second))
            if len(row[3]) == 10:
                rows.remove(row)
                records.append(answer(row[0], row[1], row[3], 10, tenant=row[2]))
    return columns(*records)


def test_under_a_flood_a_fair_server_is_told_from_one_that_serves_in_order() -> None:
    """All are served in the end, so what each got in all is what it asked for."""
    in_order, fair = fairness([served("")], {}), fairness([served("quiet")], {})
    assert in_order is not None and fair is not None
    assert in_order.jain < 0.65 and fair.jain > 0.95
    assert in_order.between == fair.between == ("loud", "quiet")
    assert fair.largest_lag_tokens < 40 < 400 < in_order.largest_lag_tokens


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 9), st.booleans()), min_size=1, max_size=8))
def test_what_is_due_is_all_that_there_was_and_nobody_envies(tenants: list[tuple[float, float, bool]]) -> None:
    got, shares = (np.asarray([one[place] for one in tenants], np.float64) for place in (0, 1))
    waits = np.asarray([one[2] for one in tenants])
    found = max_min(float(got.sum()), np.where(waits, np.inf, got), shares)
    assert found.sum() == pytest.approx(got.sum(), abs=1e-6)
    assert (found >= 0).all() and (found[~waits] <= got[~waits] + 1e-9).all()
    for one in np.flatnonzero(waits | (found < got - 1e-6)):  # who would like more has least by its share
        assert (found / shares <= found[one] / shares[one] + 1e-6).all()


@given(
    st.lists(st.tuples(moments, st.floats(0.1, 50)), max_size=15),
    st.lists(st.tuples(moments, st.floats(0.1, 50)), max_size=15),
    st.lists(st.tuples(moments, st.floats(0.01, 30)), min_size=1, max_size=4),
)
def test_lag_within_stretches_is_the_widest_difference_of_any_part(
    one: list[tuple[float, float]], other: list[tuple[float, float]], parts: list[tuple[float, float]]
) -> None:
    begins, ends = covered(np.asarray([at for at, _ in parts]), np.asarray([at + length for at, length in parts]))
    mine, theirs = (tuple(np.asarray(sorted(some)).reshape(-1, 2).T) for some in (one, other))
    found = lag_within((mine[0], mine[1]), (theirs[0], theirs[1]), begins, ends)

    def widest(begin: float, end: float) -> float:
        steps = sorted(
            [(at, n) for at, n in one if begin <= at <= end] + [(at, -n) for at, n in other if begin <= at <= end]
        )
        level = [0.0, *np.cumsum([n for _, n in steps])]
        return max(abs(a - b) for a in level for b in level)

    if len({at for at, _ in [*one, *other]}) == len(one) + len(other):  # at one moment the order isn't given
        assert abs(found) == pytest.approx(max(map(widest, begins, ends)), abs=1e-6)


def test_cold_starts_are_apart_from_warm_ones() -> None:
    found = cold_starts([Columns.of(made_run(Making(requests=300, cold=40)))])
    assert found is not None
    assert (found.cold, found.warm) == (40, 260)
    assert found.cold_p50_ms is not None and found.warm_p50_ms is not None
    assert found.cold_p50_ms > 2 * found.warm_p50_ms
    assert cold_starts([Columns.of(made_run(Making()))]) is None


def test_requests_that_were_never_sent_take_no_time() -> None:
    never = Record(Planned(0, 1.0, "a", "text", 3), START + 1, error="connection refused")
    assert distinct_under_way(columns(never, model(1, "b", 2.0, 3.0))) == pytest.approx(1.0)
