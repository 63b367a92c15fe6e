"""The search for the highest rate, on servers whose capacity is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.capacity import MOST_TRIALS, Trial, find_capacity

rates = st.floats(min_value=0.05, max_value=500)


def up_to(capacity: float) -> tuple[list[float], object]:
    asked: list[float] = []

    async def measure(rate: float) -> Trial:
        asked.append(rate)
        holds = rate <= capacity
        return Trial(rate, 1.0 if holds else 0.5, holds, "" if holds else "too slow")

    return asked, measure


@given(rates, rates)
async def test_what_is_found_lies_within_the_factor_below_the_capacity(capacity: float, first: float) -> None:
    asked, measure = up_to(capacity)
    found = await find_capacity(measure, first, 1000)  # type: ignore[arg-type]
    assert len(asked) == len(found.trials) <= MOST_TRIALS
    if capacity < first / 128:
        assert found.highest is None
    elif found.highest is not None:
        assert found.highest <= capacity
        if found.confirmed:
            assert found.lowest_failing is not None
            assert capacity < found.lowest_failing <= 1.0501 * found.highest
    if first / 16 < capacity < first * 16:
        assert found.confirmed


async def test_a_server_faster_than_the_ceiling_is_asked_no_more_than_that() -> None:
    asked, measure = up_to(10_000)
    found = await find_capacity(measure, 10, 100)  # type: ignore[arg-type]
    assert max(asked) == found.highest == 100
    assert found.lowest_failing is None
    assert found.confirmed


async def test_a_rate_that_fails_when_measured_again_is_not_the_answer() -> None:
    seen: list[float] = []

    async def measure(rate: float) -> Trial:
        holds = rate <= 8 if seen.count(rate) == 0 else rate <= 5
        seen.append(rate)
        return Trial(rate, float(holds), holds)

    found = await find_capacity(measure, 4, 100)
    assert found.confirmed
    assert found.highest is not None
    assert found.highest <= 5


@pytest.mark.parametrize(("at", "highest", "failing"), [(1, None, None), (4, 16, None), (6, 32, 64), (10, 47.3, 49.4)])
async def test_an_interrupt_ends_the_search_with_what_is_known(
    at: int, highest: float | None, failing: float | None
) -> None:
    """Wherever it comes, also in the run that would have confirmed a rate: that held all the same."""
    asked, measure = up_to(48)

    async def cut(rate: float) -> Trial:
        trial: Trial = await measure(rate)  # type: ignore[operator]
        return replace(trial, holds=False, because="interrupted", interrupted=True) if len(asked) == at else trial

    found = await find_capacity(cut, 4, 1000)
    assert len(asked) == len(found.trials) == at
    assert found.interrupted
    assert not found.confirmed
    for told, expected in ((found.highest, highest), (found.lowest_failing, failing)):
        assert told == (expected if expected is None else pytest.approx(expected, 0.01))
    if at == 10:
        assert asked[-1] == found.highest, "it was to be confirmed"


@pytest.mark.parametrize(("first", "ceiling", "within"), [(0, 1, 1.1), (-1, 1, 1.1), (2, 1, 1.1), (1, 2, 1.0)])
async def test_senseless_bounds_are_refused(first: float, ceiling: float, within: float) -> None:
    _, measure = up_to(1)
    with pytest.raises(ValueError, match="within > 1"):
        await find_capacity(measure, first, ceiling, within)  # type: ignore[arg-type]
