"""Confidence intervals hold the truth about as often as they say, on made-up data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.columns import Floats
from livery_loadtest.growth import straight
from livery_loadtest.intervals import RESAMPLES, Blocks, block_count, interval, over_repeats, t_quantile

# Student's t at 97.5 %, as any table has it.
T_TABLE = {4: 2.7764, 5: 2.5706, 9: 2.2622, 19: 2.0930, 29: 2.0452, 99: 1.9842}


@pytest.mark.parametrize(("degrees", "expected"), T_TABLE.items())
def test_students_t(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, rel=1e-3)


def test_t_intervals_hold_the_mean_nineteen_times_in_twenty() -> None:
    draw = np.random.default_rng(1)
    found = [over_repeats([float(value) for value in draw.normal(7, 2, 5)]) for _ in range(2000)]
    held = np.mean([one.low <= 7 <= one.high for one in found])
    assert 0.935 <= held <= 0.965  # 3 standard errors about 0.95


def related(draw: np.random.Generator, count: int, keeps: float) -> Floats:
    """Lognormal waits, each like the one before (first order autoregression), as a queue makes them; median 1."""
    steps = draw.normal(0, 1, count) * (1 - keeps**2) ** 0.5
    level = np.empty(count)
    level[0] = draw.normal()
    for place in range(1, count):
        level[place] = keeps * level[place - 1] + steps[place]
    return np.exp(0.5 * level)


@pytest.mark.parametrize(("keeps", "least"), [(0.0, 0.90), (0.6, 0.82)])
def test_block_intervals_hold_percentiles_also_of_neighbours_that_are_alike(keeps: float, least: float) -> None:
    draw = np.random.default_rng(2)
    truth = {0.5: 1.0, 0.9: float(np.exp(0.5 * 1.2815516))}
    held: dict[float, list[bool]] = {share: [] for share in truth}
    for seed in range(150):
        values = related(draw, 500, keeps)
        drawn = Blocks([500], seed).percentiles(values, np.arange(500), list(truth))
        for row, share in zip(drawn, truth, strict=True):
            around = interval(float(np.quantile(values, share)), row)
            held[share].append(around.low <= truth[share] <= around.high)
    for share, found in held.items():
        assert least <= np.mean(found) <= 0.995, share


def test_drawing_single_requests_would_be_too_sure_of_alike_neighbours() -> None:
    """What blocks are for: the same data without them are held far less often."""
    draw = np.random.default_rng(2)
    held = []
    for seed in range(100):
        values = related(draw, 500, 0.9)
        single = np.random.default_rng(seed).choice(values, (300, 500))
        low, high = np.quantile(np.median(single, axis=1), [0.025, 0.975])
        drawn = Blocks([500], seed).percentiles(values, np.arange(500), [0.5])[0]
        around = interval(float(np.median(values)), drawn)
        held.append((low <= 1 <= high, around.low <= 1 <= around.high))
    singles, blocks = np.mean(held, axis=0)
    assert blocks > singles + 0.2


def test_ratios_of_sums_hold_the_truth() -> None:
    draw = np.random.default_rng(4)
    held = []
    for seed in range(200):
        above, below = draw.poisson(30, 100).astype(float), np.full(100, 0.5)
        around = interval(float(above.sum() / below.sum()), Blocks([100], seed).ratios(above, below))
        held.append(around.low <= 60 <= around.high)
    assert 0.85 <= np.mean(held) <= 0.99


@given(st.integers(1, 200_000))
def test_blocks_are_some_and_no_more_than_items(items: int) -> None:
    count = block_count(items)
    assert min(items, 5) <= count <= items


@given(st.lists(st.integers(0, 60), max_size=5))
def test_every_repeat_keeps_its_number_of_blocks(sizes: list[int]) -> None:
    blocks = Blocks(sizes)
    assert len(blocks.place) == sum(sizes)
    assert blocks.count == sum(block_count(size) for size in sizes if size)
    assert (blocks.weights.sum(axis=1) == blocks.count).all()


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=80), st.integers(0, 5))
def test_resampled_percentiles_are_among_the_values(values: list[float], seed: int) -> None:
    drawn = Blocks([len(values)], seed).percentiles(np.asarray(values), np.arange(len(values)), [0.5, 0.99])
    assert drawn.shape == (2, RESAMPLES)
    assert np.isin(drawn, values).all()
    assert (drawn[0] <= drawn[1]).all()


def test_many_values_are_resampled_nearly_exactly() -> None:
    """With more values than bins, every draw of one block is that block's values, to a bin's width."""
    values = np.random.default_rng(5).lognormal(0, 1, 50_000)
    blocks = Blocks([1])  # one item holds them all
    drawn = blocks.percentiles(values, np.zeros(len(values), np.int64), [0.5, 0.9, 0.99, 0.999])
    for row, share in zip(drawn, [0.5, 0.9, 0.99, 0.999], strict=True):
        assert row[0] == pytest.approx(np.quantile(values, share), rel=0.01)


def test_slopes_hold_the_truth_also_where_neighbours_are_alike() -> None:
    draw = np.random.default_rng(6)
    held = []
    for _ in range(200):
        times = np.linspace(0, 3600, 720)
        line = straight(times, 10 + times / 3600 * 5 + np.log(related(draw, 720, 0.7)))
        assert line is not None
        held.append(line[0].low <= 5 <= line[0].high)
    assert 0.88 <= np.mean(held) <= 0.99


def test_too_little_says_nothing() -> None:
    assert straight(np.arange(4.0), np.arange(4.0)) is None
    assert straight(np.zeros(9), np.arange(9.0)) is None
    assert interval(3.0, np.full(9, np.nan)).low == 3.0
