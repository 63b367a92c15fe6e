"""The arithmetic of a report, against its definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.measures import over_rounds, paired_ratio, percentiles
from loadtest.definitions import by_definition

durations = st.floats(min_value=1e-4, max_value=1e4)
speeds = st.floats(min_value=1e-2, max_value=1e5)


@given(st.lists(durations, min_size=1, max_size=60))
def test_percentiles_follow_the_definition_in_milliseconds(values: list[float]) -> None:
    found = percentiles(values)
    assert found is not None
    for value, share in ((found.p50, 0.5), (found.p90, 0.9), (found.p99, 0.99)):
        assert value == pytest.approx(1000 * by_definition(values, share), rel=1e-9)
    assert found.p50 <= found.p90 <= found.p99 <= 1000 * max(values) * (1 + 1e-12)


def test_nothing_has_no_percentiles() -> None:
    assert percentiles([]) is None
    assert over_rounds([]) is None


@given(st.lists(st.tuples(speeds, speeds), min_size=1, max_size=20), speeds)
def test_ratio_is_taken_within_rounds(pairs: list[tuple[float, float]], drift: float) -> None:
    above, below = [a for a, _ in pairs], [b for _, b in pairs]
    ratio = paired_ratio(above, below)
    assert ratio is not None
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.low == pytest.approx(min(a / b for a, b in pairs))
    # A machine that is `drift` times as fast in the first round changes nothing.
    drifted = paired_ratio([above[0] * drift, *above[1:]], [below[0] * drift, *below[1:]])
    assert drifted is not None
    assert drifted.median == pytest.approx(ratio.median)


def test_ratio_leaves_out_rounds_without_a_denominator() -> None:
    ratio = paired_ratio([3.0, 5.0], [0.0, 2.0])
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == (2.5, 2.5, 2.5)
    assert paired_ratio([3.0], [0.0]) is None
