"""The search for the highest rate, on servers whose capacity is known."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.build import build_script
from livery_loadtest.capacity import MOST_TRIALS, Trial, find_capacity, pace
from livery_loadtest.commands.capacity import at_rate, judge
from livery_loadtest.record import Record, Run
from livery_loadtest.report.result import Server, make_result
from livery_loadtest.spec import Workload, parse_workload
from loadtest.made_runs import GOOD
from loadtest.test_result_document import ORIGIN

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


async def test_the_search_goes_on_below_a_first_rate_that_fails_when_measured_again() -> None:
    seen: list[float] = []

    async def measure(rate: float) -> Trial:
        seen.append(rate)
        holds = rate <= 9.9 or seen == [10]
        return Trial(rate, float(holds), holds)

    found = await find_capacity(measure, 10, 100)
    assert found.confirmed
    assert found.highest is not None
    assert 7.5 < found.highest < 8.4, "well below what was doubted"


def queued(workload: Workload, per_second: float) -> Run:
    """What a server leaves that begins every answer at once, and completes so many a second, one after the other."""
    records, free = [], 1000.0
    for planned in build_script(workload, "base", ["pirate"]).requests:
        assert planned.at is not None
        due = 1000 + planned.at
        free = max(free, due) + 1 / per_second
        first = due + 0.01
        records.append(
            Record(
                *(planned, due, due, due, free, array("d", [first, free])),
                output_tokens=planned.max_tokens,
                finish_reason="length",
                status=200,
            )
        )
    return Run("ours", 0, 1000.0, free - 1000, records, GOOD)


@pytest.mark.parametrize("ends", ["requests: 64", "requests: 8\nduration_s: 20", "duration_s: 20"])
@pytest.mark.parametrize("first", [1, 30])
async def test_a_server_that_begins_soon_and_completes_five_a_second_holds_five_a_second(
    first: float, ends: str
) -> None:
    """As many requests at any rate would be a burst at a high one, of which each first token is in time."""
    asked = parse_workload(f"name: some\n{ends}\nslo: {{ttft_ms: 3000}}\n" + "arrivals: {kind: poisson, rate: 1}\n")

    async def measure(rate: float) -> Trial:
        workload = at_rate(asked, rate, 20)
        result = make_result(workload, [Server(name="ours", url="http://host")], [queued(workload, 5)], ORIGIN)
        return judge(result, rate, 0.95)

    found = await find_capacity(measure, first, 1000)
    assert found.confirmed
    assert found.highest == pytest.approx(5, rel=0.25)
    assert [trial.because for trial in found.trials if trial.rate > 7] != []
    assert all("requests/s were completed of" in trial.because for trial in found.trials if trial.rate > 7)


def test_chats_come_for_as_long_as_requests_do() -> None:
    fields = "name: some\nrequests: 64\narrivals: {kind: poisson, rate: 1}\nendpoint: chat\nslo: {ttft_ms: 300}\n"
    turns = "conversations: {turns: {kind: fixed, tokens: 5}}\n"
    assert at_rate(parse_workload(fields), 100, 20).requests == 2000
    assert at_rate(parse_workload(fields + turns), 100, 20).requests == 10_000
    assert at_rate(parse_workload(fields), 1, 20).requests == 64


@pytest.mark.parametrize(("longer", "kept_up"), [(1.0, True), (1.05, True), (1.3, False)])
def test_a_server_keeps_up_whose_answers_come_as_their_requests_do(longer: float, kept_up: bool) -> None:
    """However long each takes, and in whatever order they end."""
    came = [index * 0.1 for index in range(200)]
    done = [3 + at * longer + 0.4 * (index % 3) for index, at in enumerate(came)]
    found = pace(came, done)
    assert found.kept_up is kept_up
    assert (found.came, found.completed) == (pytest.approx(10), pytest.approx(10 / longer, rel=0.05))
    assert pace([1.0], [2.0]).kept_up


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
