"""Folded gaps say within a percent what the gaps themselves say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.gaps import GROWTH, LOWEST_S, Gaps

SECONDS = st.floats(LOWEST_S, 500.0)


@given(st.lists(st.lists(SECONDS, min_size=1, max_size=30), min_size=1, max_size=4), st.floats(0.1, 100.0))
def test_percentiles_are_a_percent_too_long_at_most(answers: list[list[float]], percent: float) -> None:
    gaps, other = Gaps(), Gaps()
    for at, answer in enumerate(answers):
        (gaps, other)[at % 2].add(np.cumsum([0.0, *answer]).tolist())
    gaps.merge(other)
    every = [gap for answer in answers for gap in answer]
    exact = float(np.percentile(every, percent, method="inverted_cdf"))
    folded = gaps.percentile(percent)
    assert folded is not None
    assert gaps.total == len(every)
    assert exact * (1 - 1e-6) <= folded <= exact * GROWTH * (1 + 1e-6)


def test_events_of_one_read_and_very_long_gaps_have_their_places() -> None:
    gaps = Gaps()
    gaps.add([1.0, 1.0, 1e9])
    gaps.add([1.0])
    gaps.add([])
    assert gaps.total == 2
    assert gaps.percentile(50) == LOWEST_S
    assert gaps.percentile(100) == pytest.approx(LOWEST_S * GROWTH**1849)
    assert Gaps().percentile(50) is None
    assert Gaps(gaps.counts).counts == gaps.counts
