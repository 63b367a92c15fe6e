"""The arithmetic of a report, against its definitions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.client import Record
from livery_loadtest.measures import distinct_under_way, over_rounds, paired_ratio, percentiles, summarise

durations = st.floats(min_value=1e-4, max_value=1e4)
speeds = st.floats(min_value=1e-2, max_value=1e5)


def by_definition(values: list[float], share: float) -> float:
    """The value at `share` of the way through the sorted list, linear between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def answer(
    model: str = "m", started: float = 0.0, arrivals: tuple[float, ...] = (), tokens: int | None = None
) -> Record:
    finished = arrivals[-1] if arrivals else started + 1
    count = len(arrivals) if tokens is None else tokens
    return Record(model, started, finished, list(arrivals), 3, count, finish_reason="length")


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


def test_summary_counts_only_good_answers_as_tokens_and_all_errors_by_kind() -> None:
    good = answer(arrivals=(0.5, 0.7, 1.0))
    late = answer(started=0.5, arrivals=(1.5, 2.0), tokens=4)
    refused = Record("m", 0.0, 0.1, error="http 404", error_message="no such model")
    cut = Record("m", 0.0, 4.0, [1.0], output_tokens=1, error="stream cut", error_message="no end")
    summary = summarise([[good, late, refused, cut, refused]], expected_tokens=3)
    assert (summary.requests, summary.completed) == (5, 2)
    assert summary.errors == {"http 404": 2, "stream cut": 1}
    assert summary.error_examples["http 404"] == "no such model"
    assert (summary.output_tokens, summary.text_chunks, summary.prompt_tokens) == (7, 5, 6)
    assert summary.seconds == pytest.approx(4.0)
    assert summary.tokens_per_second == pytest.approx(7 / 4)
    assert summary.requests_per_second == pytest.approx(2 / 4)
    assert summary.off_length == 1
    assert summary.ttft_ms is not None
    assert summary.ttft_ms.p50 == pytest.approx(750)
    assert summary.itl_ms is not None
    assert summary.itl_ms.p50 == pytest.approx(300)  # gaps of 200, 300 and 500
    assert summary.tpot_ms is not None
    assert summary.tpot_ms.p50 == pytest.approx((500 / 2 + 500 / 3) / 2)


def test_rounds_are_pooled_without_the_pauses_between_them() -> None:
    first, second = answer(arrivals=(1.0, 2.0)), answer(started=100.0, arrivals=(101.0, 102.0))
    summary = summarise([[first], [second]])
    assert summary.seconds == pytest.approx(4.0)
    assert summary.tokens_per_second == pytest.approx(1.0)


def test_usage_that_cannot_be_right_is_counted() -> None:
    summary = summarise([[answer(arrivals=(1.0, 2.0, 3.0), tokens=2)]])
    assert summary.more_chunks_than_tokens == 1


def test_distinct_models_are_weighted_by_time() -> None:
    records = [
        Record("a", 0.0, 4.0),
        Record("b", 1.0, 2.0),
        Record("a", 1.0, 3.0),
        Record("c", 10.0, 12.0),
    ]
    # a alone for 3 s, a with b for 1 s, nothing for 6 s, c alone for 2 s.
    assert distinct_under_way(records) == pytest.approx((3 * 1 + 1 * 2 + 2 * 1) / 6)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), durations, durations), min_size=1, max_size=30),
)
def test_distinct_models_stay_within_their_bounds(entries: list[tuple[str, float, float]]) -> None:
    records = [Record(model, start, start + length) for model, start, length in entries]
    found = distinct_under_way(records)
    assert 1 - 1e-9 <= found <= len({model for model, _, _ in entries}) + 1e-9
