"""Distinct adapters of a batch and hit rates of caches: closed forms against draws and a cache that is played."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from livery.scale.plan.popularity import dealt_out, expected_distinct, grouped, lru_hit_rate, zipf


@pytest.mark.parametrize(
    ("adapters", "exponent", "rows", "known"),
    [(1000, 0.0, 32, 31.5), (1000, 0.0, 128, 120.2), (1000, 1.0, 32, 24.7), (1000, 1.0, 128, 76.5), (3, 2.0, 1, 1.0)],
)
def test_distinct_adapters_are_as_many_as_draws_have(adapters: int, exponent: float, rows: int, known: float) -> None:
    shares = zipf(adapters, exponent)
    expected = expected_distinct(shares, rows)
    assert expected == pytest.approx(known, abs=0.1)
    draws = np.random.default_rng(5).choice(adapters, size=(4000, rows), p=shares)
    counted = [len(set(batch)) for batch in draws.tolist()]
    assert expected == pytest.approx(np.mean(counted), abs=4 * np.std(counted) / np.sqrt(len(counted)) + 1e-9)


@pytest.mark.parametrize(("adapters", "exponent", "slots"), [(500, 1.0, 40), (500, 0.6, 200), (300, 0.0, 100)])
def test_hit_rate_is_that_of_a_cache_that_is_played(adapters: int, exponent: float, slots: int) -> None:
    shares = zipf(adapters, exponent)
    held: OrderedDict[int, None] = OrderedDict()
    hits: list[bool] = []
    for adapter in np.random.default_rng(6).choice(adapters, size=60_000, p=shares).tolist():
        hits.append(adapter in held)
        held[adapter] = None
        held.move_to_end(adapter)
        if len(held) > slots:
            held.popitem(last=False)
    assert lru_hit_rate(shares, slots) == pytest.approx(np.mean(hits[10_000:]), abs=0.01)


@given(adapters=some.integers(1, 400), exponent=some.floats(0, 4), rows=some.floats(0, 600))
def test_distinct_adapters_grow_with_rows_up_to_both(adapters: int, exponent: float, rows: float) -> None:
    shares = zipf(adapters, exponent)
    assert shares.sum() == pytest.approx(1)
    assert np.all(np.diff(shares) <= 0)
    distinct = expected_distinct(shares, rows)
    assert 0 <= distinct <= adapters + 1e-6
    if rows >= 1:
        assert distinct <= rows + 1e-6
    assert expected_distinct(shares, rows + 1) >= distinct


@given(adapters=some.integers(1, 400), exponent=some.floats(0, 3), slots=some.integers(0, 400))
def test_a_larger_cache_hits_more_often(adapters: int, exponent: float, slots: int) -> None:
    shares = zipf(adapters, exponent)
    rate = lru_hit_rate(shares, slots)
    assert 0 <= rate <= 1
    assert (rate == 1) if slots >= adapters else (rate <= lru_hit_rate(shares, slots + 1) + 1e-9)


@pytest.mark.parametrize("adapters", [1, 2000, 2001, 100_000])
@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0, 2.0])
def test_neighbours_taken_together_come_to_the_same(adapters: int, exponent: float) -> None:
    shares = zipf(adapters, exponent)
    means, counts = grouped(shares)
    assert counts.sum() == adapters
    assert (counts * means).sum() == pytest.approx(1)
    assert len(means) <= 3000
    for rows in (1, 77.5, 5000):
        assert expected_distinct(means, rows, counts) == pytest.approx(expected_distinct(shares, rows), rel=1e-5)
    for slots in (0, 1, 500, adapters // 2, adapters):
        assert lru_hit_rate(means, slots, counts) == pytest.approx(lru_hit_rate(shares, slots), abs=1e-5)


@given(adapters=some.integers(1, 400), exponent=some.floats(0, 3), replicas=some.integers(1, 500))
def test_dealt_out_adapters_are_a_share_of_all(adapters: int, exponent: float, replicas: int) -> None:
    own = dealt_out(zipf(adapters, exponent), replicas)
    assert own.sum() == pytest.approx(1)
    assert len(own) == -(-adapters // min(replicas, adapters))
