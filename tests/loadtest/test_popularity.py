"""Adapters are named as often as the workload says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livery_loadtest.popularity import choose
from livery_loadtest.spec import (
    Distinct,
    Drifting,
    Identical,
    Popularity,
    Power,
    SpecInvalid,
    Uniform,
    Weights,
    Zipf,
)

COUNT = 100_000


def names(count: int) -> list[str]:
    return [f"adapter-{index}" for index in range(count)]


def drawn(popularity: Popularity, known: int, count: int = COUNT, seed: int = 0) -> np.ndarray:
    found = choose(popularity, names(known), count, np.random.default_rng(seed))
    assert len(found) == count and found.min() >= 0 and found.max() < known
    return found


def fits(found: np.ndarray, shares: np.ndarray) -> bool:
    """Whether counts are within six standard deviations of what these shares make of them, all of them."""
    counts = np.bincount(found, minlength=len(shares))
    expected = shares * len(found)
    return bool((np.abs(counts - expected) <= 6 * np.sqrt(expected * (1 - shares)) + 1).all())


def test_identical_names_the_first_and_uniform_all_alike() -> None:
    assert not drawn(Identical(), 5).any()
    assert fits(drawn(Uniform(), 37), np.full(37, 1 / 37))


@given(known=st.integers(1, 60), start=st.integers(0, 500))
@settings(deadline=None)
def test_distinct_has_every_adapter_once_in_any_window(known: int, start: int) -> None:
    window = drawn(Distinct(), known, 1000)[start : start + known]
    assert len(set(window.tolist())) == known


@given(known=st.integers(1, 100), exponent=st.floats(0, 3), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_zipf_follows_its_weights(known: int, exponent: float, seed: int) -> None:
    weights = np.arange(1, known + 1) ** -exponent
    assert fits(drawn(Zipf(exponent=exponent), known, seed=seed), weights / weights.sum())


def test_zipf_of_one_names_the_first_ten_times_as_often_as_the_tenth() -> None:
    counts = np.bincount(drawn(Zipf(exponent=1), 50, 1_000_000))
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.05)


@given(known=st.integers(1, 2000), alpha=st.sampled_from([0.1, 0.3, 0.6, 1.0]), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_the_power_law_is_s_loras(known: int, alpha: float, seed: int) -> None:
    """Against the formula as S-LoRA's benchmarks have it, by numpy's legacy generator, at the edges of ten groups."""
    np.random.seed(seed % 2**32)
    theirs = (known * np.random.power(alpha, COUNT)).astype(int)
    ours = drawn(Power(alpha=alpha), known, seed=seed)
    for edge in np.linspace(1, known, 10):
        exact = min(1.0, (np.ceil(edge) / known) ** alpha)
        assert (ours < edge).mean() == pytest.approx(exact, abs=0.01)
        assert (theirs < edge).mean() == pytest.approx(exact, abs=0.01)


def test_the_power_law_of_a_tenth_gives_one_of_a_thousand_half_of_all() -> None:
    assert (drawn(Power(alpha=0.1), 1000) == 0).mean() == pytest.approx(0.501, abs=0.01)


def test_a_hot_set_takes_its_share_and_moves_on() -> None:
    popularity = Drifting(hot=4, hot_share=0.8, every=1000)
    found = drawn(popularity, 20, 60_000)
    for step in (0, 1, 17, 59):
        part = found[1000 * step : 1000 * (step + 1)]
        hot = (np.arange(4) + step) % 20
        assert np.isin(part, hot).mean() == pytest.approx(0.8, abs=0.08)
        assert set(part.tolist()) == set(range(20)), "the others have the rest"
    whole_turns = drawn(popularity, 20)
    assert fits(whole_turns, np.full(20, 1 / 20)), "over whole turns of the ring all are alike"


def test_a_hot_set_of_all_and_one_too_large() -> None:
    assert fits(drawn(Drifting(hot=5, hot_share=0.5, every=7), 5), np.full(5, 0.2))
    with pytest.raises(SpecInvalid, match=r"popularity.hot is 6, but 5 adapters take requests; lower it"):
        drawn(Drifting(hot=6), 5)


def test_weights_by_hand_are_followed_and_bind_to_names() -> None:
    found = drawn(Weights(weights={"adapter-3": 3, "adapter-1": 1, "adapter-0": 0}), 5)
    assert fits(found, np.array([0, 0.25, 0, 0.75, 0]))
    with pytest.raises(
        SpecInvalid, match=r"popularity.weights names nobody, but .* are adapter-0, adapter-1; name those"
    ):
        drawn(Weights(weights={"adapter-1": 1, "nobody": 1}), 2)
