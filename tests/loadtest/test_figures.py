"""The numbers of a load test, against their definitions and against hand-made traffic."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livery_loadtest.columns import Columns, is_json
from livery_loadtest.compare import Verdict, compare
from livery_loadtest.figures import Measured, Summary, meets, summarise
from livery_loadtest.gaps import Gaps
from livery_loadtest.growth import Growth
from livery_loadtest.machine import Machine
from livery_loadtest.origin import Origin
from livery_loadtest.record import Record, Run, Sample
from livery_loadtest.report.packed import pack
from livery_loadtest.report.result import Result, Server, make_result
from livery_loadtest.script import Planned
from livery_loadtest.spec import Slo
from loadtest.definitions import by_definition
from loadtest.made_runs import GOOD, Making, made_run, workload

START = 500.0
ORIGIN = Origin("livery bench run", "2026-11-21T12:00:00+00:00", "1.0", Machine("A CPU", 2, 16.0, "Linux", "3.11", 0.1))


def answer(
    index: int,
    sent: float,
    events: Sequence[float],
    tokens: int | None = None,
    *,
    at: float | None = None,
    model: str = "m",
    tenant: str | None = None,
) -> Record:
    """A whole answer; times are seconds after the start, `at` its planned time in an open loop."""
    record = Record(Planned(index, at, model, "text", 3, tenant), START + (sent if at is None else at))
    record.sent, record.connected = START + sent, START + sent
    record.events = array("d", [START + time for time in events])
    record.finished = record.events[-1]
    record.output_tokens = tokens
    record.finish_reason, record.status = "length", 200
    return record


def failed(index: int, at: float, kind: str, message: str, **more: object) -> Record:
    record = Record(Planned(index, None, "m", "text", 3), START + at, START + at, finished=START + at + 0.1)
    record.error, record.error_message = kind, message
    for name, value in more.items():
        setattr(record, name, value)
    return record


def of(*records: Record, seconds: float = 4.0, **fields: object) -> Summary:
    run = Run("t", 0, START, seconds, records, GOOD)
    columns = Columns.of(run)
    return summarise("t", [Measured(0, seconds, columns)], workload(**fields))


def test_connecting_and_a_late_client_are_part_of_every_latency() -> None:
    """In a closed loop and in a chat's later turns as well: `intended` is known of every request."""
    waited = answer(0, 0.4, (0.5, 0.7))
    waited.intended = START
    turn = answer(1, 0.4, (0.5, 0.9))
    turn.planned, turn.intended = Planned(1, None, "m", "and then?", 3, follows=0), START
    summary = of(waited, turn)
    assert summary.ttft_ms is not None and summary.e2e_ms is not None
    assert summary.ttft_ms.mean.value == pytest.approx(500)
    assert summary.e2e_ms.most == pytest.approx(900)


def test_requests_that_were_sent_twice_are_counted() -> None:
    once, twice = answer(0, 0.0, (0.5,)), answer(1, 0.0, (0.5,))
    twice.retried = True
    assert (of(once).retried, of(once, twice).retried) == (0, 1)


def test_numbers_of_hand_made_answers() -> None:
    good = answer(0, 0.0, (0.5, 0.7, 1.0), 3)
    late = answer(1, 0.5, (1.5, 2.0), 4)
    refused = failed(2, 0.0, "http 404", "no such model")
    cut = failed(3, 0.0, "cut", "no end", events=array("d", [START + 1]), output_tokens=1)
    again = failed(4, 0.0, "http 404", "no such model either", retry_after_s=3.0)
    summary = of(good, late, refused, cut, again)
    assert (summary.requests, summary.completed, summary.failed) == (5, 2, 3)
    assert [(one.kind, one.count, one.example, one.retry_after_s) for one in summary.errors] == [
        ("http 404", 2, "no such model", 3.0),
        ("cut", 1, "no end", None),
    ]
    assert summary.tokens_per_second.value == pytest.approx(7 / 4)  # of good answers only
    assert summary.requests_per_second.value == pytest.approx(2 / 4)
    assert summary.output_tokens == 7
    assert summary.ttft_ms is not None
    assert (summary.ttft_ms.values, summary.ttft_ms.p50.value) == (2, pytest.approx(750))
    assert summary.itl_ms is not None
    assert summary.itl_ms.p50.value == pytest.approx(300)  # gaps of 200, 300 and 500
    assert summary.itl_ms.most == pytest.approx(500)
    assert summary.tpot_ms is not None
    assert summary.tpot_ms.p50.value == pytest.approx((500 / 2 + 500 / 3) / 2)
    assert summary.e2e_ms is not None
    assert summary.e2e_ms.p50.value == pytest.approx(1250)
    assert summary.good_share.value == 0  # none within 200 ms


def test_open_loops_count_from_the_planned_time_and_closed_ones_from_when_a_stream_was_free() -> None:
    held_up = of(answer(0, 1.0, (1.5, 1.6), at=0.2))
    assert held_up.ttft_ms is not None
    assert held_up.ttft_ms.p50.value == pytest.approx(1300)
    assert held_up.e2e_ms is not None
    assert held_up.e2e_ms.p50.value == pytest.approx(1400)
    closed = of(answer(0, 1.0, (1.5, 1.6)))
    assert closed.ttft_ms is not None
    assert closed.ttft_ms.p50.value == pytest.approx(500)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(min_value=1e-4, max_value=100), min_size=1, max_size=50))
def test_percentiles_follow_the_definition(waits: list[float]) -> None:
    summary = of(*(answer(i, 0.0, (wait, wait + 1), 2) for i, wait in enumerate(waits)), seconds=200.0)
    assert summary.ttft_ms is not None
    for found, share in (
        (summary.ttft_ms.p50, 0.5),
        (summary.ttft_ms.p90, 0.9),
        (summary.ttft_ms.p95, 0.95),
        (summary.ttft_ms.p99, 0.99),
    ):
        assert found.value == pytest.approx(1000 * by_definition(waits, share), rel=1e-6)
        assert found.low <= found.value <= found.high
    assert summary.ttft_ms.most == pytest.approx(1000 * max(waits))
    assert summary.ttft_ms.mean.value == pytest.approx(1000 * sum(waits) / len(waits))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.001, 1), st.lists(st.floats(0.001, 1), min_size=0, max_size=6)), min_size=1, max_size=20
    ),
    st.floats(1, 2000),
    st.floats(1, 2000),
    st.floats(1, 9000),
)
def test_goodput_is_what_meets_every_bound(
    answers: list[tuple[float, list[float]]], ttft_ms: float, tpot_ms: float, e2e_ms: float
) -> None:
    records = [
        answer(i, 0.0, np.cumsum([wait, *gaps]).tolist(), len(gaps) + 1) for i, (wait, gaps) in enumerate(answers)
    ]
    good = meets(
        Columns.of(Run("t", 0, START, 30.0, records, GOOD)), Slo(ttft_ms=ttft_ms, tpot_ms=tpot_ms, e2e_ms=e2e_ms)
    )
    for (wait, gaps), is_good in zip(answers, good, strict=True):
        clear = 1e-6  # float sums of large clock values against sums of small ones
        each = sum(gaps) / len(gaps) if gaps else 0.0
        distances = [1000 * wait - ttft_ms, 1000 * each - tpot_ms, 1000 * (wait + sum(gaps)) - e2e_ms]
        if all(abs(distance) > clear for distance in distances):
            assert is_good == all(distance < 0 for distance in distances)


def test_goodput_leaves_out_who_left_and_counts_who_failed() -> None:
    slow, fast = answer(0, 0.0, (0.5, 0.6), 2), answer(1, 0.0, (0.1, 0.12), 2)
    gone = answer(2, 0.0, (0.1, 0.12))
    gone.left = True
    summary = of(slow, fast, gone, failed(3, 0.0, "http 500", "broken"))
    assert summary.good_share.value == pytest.approx(1 / 3)
    assert summary.good_per_second.value == pytest.approx(1 / 4)


def test_clients_that_left_count_towards_first_tokens_and_throughput_only() -> None:
    gone = answer(0, 0.0, (0.1, 0.2))
    gone.planned = replace(gone.planned, leave_after=2)
    gone.left = True
    stayed = answer(1, 0.0, (0.3, 0.4, 0.5), 3)
    stayed.planned = replace(stayed.planned, leave_after=9)
    summary = of(gone, stayed)
    assert summary.disconnects is not None
    assert (summary.disconnects.planned, summary.disconnects.left) == (2, 1)
    assert summary.ttft_ms is not None and summary.e2e_ms is not None
    assert (summary.ttft_ms.values, summary.e2e_ms.values) == (2, 1)
    assert summary.output_tokens == 5


def test_usage_is_compared_with_events() -> None:
    summary = of(
        answer(0, 0.0, (0.1, 0.2, 0.3)),  # without usage
        answer(1, 0.0, (0.1, 0.2), 8),  # several tokens an event
        answer(2, 0.0, (0.1, 0.2, 0.3), 1),  # can't be
    )
    usage = summary.usage
    assert (usage.told_tokens, usage.counted_events, usage.without_usage) == (9, 8, 1)
    assert (usage.more_events_than_tokens, usage.off_length) == (1, 2)
    assert usage.tokens_per_event == pytest.approx(9 / 5)
    assert of(answer(2, 0.0, (0.1,), 1), ignore_eos=False).usage.off_length == 0


def test_cached_share_is_of_prompts_whose_answers_tell_it() -> None:
    told, silent = answer(0, 0.0, (0.1,), 1), answer(1, 0.0, (0.1,), 1)
    told.prompt_tokens, told.cached_tokens = 40, 10
    silent.prompt_tokens = 1000
    summary = of(told, silent)
    assert summary.cached_share == pytest.approx(0.25)
    assert summary.prompt_tokens == 1040
    assert of(silent).cached_share is None


def test_structured_answers_are_parsed() -> None:
    def structured(index: int, text: str, finish: str = "stop") -> Record:
        record = answer(index, 0.0, (0.1,), 1)
        record.planned = replace(record.planned, json_schema={"type": "object"})
        record.text, record.finish_reason = text, finish
        return record

    summary = of(
        structured(0, '{"name": "x"}'),
        structured(1, '{"name": "x', "length"),
        structured(2, "no JSON"),
        answer(3, 0.0, (0.1,), 1),
    )
    assert summary.structured is not None
    assert (summary.structured.asked, summary.structured.parsed, summary.structured.cut) == (3, 1, 1)
    assert of(answer(3, 0.0, (0.1,), 1)).structured is None


@given(st.text(max_size=30))
def test_any_text_is_json_or_not(text: str) -> None:
    assert is_json(text) in (True, False)


def test_deep_json_hurts_nobody() -> None:
    assert not is_json("[" * 100_000)


def test_a_run_without_a_single_answer_has_numbers_too() -> None:
    summary = of(failed(0, 0.0, "connection refused", "nobody there", sent=0.0))
    assert (summary.completed, summary.failed, summary.tokens_per_second.value) == (0, 1, 0.0)
    assert summary.ttft_ms is None
    assert summary.e2e_ms is None
    empty = of()
    assert (empty.requests, empty.good_share.value) == (0, 0.0)


def test_an_interrupted_request_is_neither_whole_nor_failed() -> None:
    half = answer(0, 0.0, (0.1, 0.2))
    half.finished = 0.0
    summary = of(half, answer(1, 0.0, (0.1, 0.2), 2))
    assert (summary.completed, summary.failed) == (1, 0)
    assert summary.e2e_ms is not None
    assert summary.e2e_ms.values == 1


def test_with_few_repeats_intervals_come_from_blocks_and_with_more_from_repeats() -> None:
    def summary(repeats: int) -> Summary:
        runs = [made_run(Making(requests=120), repeat=repeat) for repeat in range(repeats)]
        return summarise("t", [Measured(run.repeat, run.seconds, Columns.of(run)) for run in runs], workload())

    few, many = summary(2), summary(6)
    assert "bootstrap" in few.intervals and "2 repeats" in few.intervals
    assert "Student's t over 6 repeats" in many.intervals
    for one in (few, many):
        assert one.ttft_ms is not None
        assert one.ttft_ms.p50.low < one.ttft_ms.p50.value < one.ttft_ms.p50.high
        assert one.tokens_per_second.low < one.tokens_per_second.value < one.tokens_per_second.high


def long_run(grows: float, seconds: float, **fields: object) -> dict[str, Growth]:
    """The lines through a run whose memory grows by so many MiB an hour from 300 on."""
    draw = np.random.default_rng(3)
    samples = [
        Sample(
            float(at),
            {
                "process_resident_memory_bytes": (300 + grows * at / 3600 + draw.normal(0, 0.3)) * 2**20,
                'cache_used{tier="a"}': 7.0,
                'cache_used{tier="b"}': at / 100,
            },
        )
        for at in np.linspace(0, seconds, 300)
    ]
    run = made_run(Making(requests=120, rate=120 / seconds))
    measured = Measured(0, seconds, Columns.of(run), samples)
    return {line.of: line for line in summarise("t", [measured], workload(**fields)).growth}


@pytest.mark.parametrize("grows", [36.0, 0.0])
def test_growth_over_a_long_run_is_shown(grows: float) -> None:
    lines = long_run(grows, 600.0)
    memory = lines["process_resident_memory_bytes"]
    assert memory.per_hour.low <= grows <= memory.per_hour.high
    assert memory.shown is (grows > 0)
    assert memory.percent_per_hour == pytest.approx(grows / 3, abs=1)
    assert not lines["ttft_ms"].shown
    assert not memory.too_steep  # nobody asked


def test_a_short_run_says_nothing_of_growth() -> None:
    assert not long_run(36.0, 60.0)


@pytest.mark.parametrize(("allowed", "too_steep"), [(5.0, True), (20.0, False)])
def test_growth_is_held_against_what_the_workload_allows(allowed: float, too_steep: bool) -> None:
    asked = [
        {"of": "process_resident_memory_bytes", "percent_per_hour": allowed, "after_s": 100},
        {"of": "cache_used", "percent_per_hour": 1},  # its series added up
        {"of": "e2e_ms", "percent_per_hour": 10},
        {"of": "no_such_metric", "percent_per_hour": 10},
    ]
    lines = long_run(36.0, 600.0, slopes=asked)
    assert lines["process_resident_memory_bytes"].too_steep is too_steep
    assert lines["cache_used"].too_steep
    assert lines["cache_used"].per_hour.value == pytest.approx(36)
    assert not lines["e2e_ms"].too_steep
    assert lines["process_resident_memory_bytes"].holds is not too_steep
    assert lines["no_such_metric"].missing
    assert not lines["no_such_metric"].holds
    assert lines["ttft_ms"].holds  # nobody asked


@pytest.mark.parametrize("told", [True, False], ids=["with usage", "without"])
def test_a_folded_run_has_its_gaps_from_the_histogram(told: bool) -> None:
    """Of a long run each answer has its first and last event and how many there were; all gaps are in one histogram."""
    run = made_run(Making(requests=80, failing=0.1))
    for record in run.records:
        record.output_tokens = record.output_tokens if told else None
    whole = summarise("t", [Measured(0, run.seconds, Columns.of(run))], workload())
    gaps = Gaps()
    for record in run.records:
        gaps.add(record.events)
        record.counted = len(record.events)
        record.events = array("d", [*record.events[:1], *record.events[1:][-1:]])
    folded = replace(run, gaps=gaps)
    columns = pack(folded, run.started).columns()  # as it is read back, too
    found = summarise("t", [Measured(0, run.seconds, columns)], workload())
    assert found.itl_ms is not None and whole.itl_ms is not None
    assert found.itl_ms.values == whole.itl_ms.values
    for name in ("p50", "p90", "p99", "mean"):
        one, known = getattr(found.itl_ms, name), getattr(whole.itl_ms, name)
        assert one.value == pytest.approx(known.value, rel=0.011), name
        assert one.low == one.value == one.high  # whose gaps they are isn't known
    assert found.tpot_ms is not None and whole.tpot_ms is not None
    assert found.tpot_ms.p50.value == pytest.approx(whole.tpot_ms.p50.value, rel=1e-3)
    assert found.usage == whole.usage
    assert found.usage.tokens_per_event == (1.0 if told else None)
    assert found.output_tokens == whole.output_tokens == 16 * whole.completed
    assert found.tokens_per_second.value == pytest.approx(whole.tokens_per_second.value)
    beside = {one.name: one for one in compare(*2 * [_result(folded)]).metrics}
    assert beside["ITL p50"].verdict is Verdict.UNKNOWN
    assert beside["TPOT p50"].verdict is Verdict.NOTHING


def _result(run: Run) -> Result:
    return make_result(workload(), [Server(name=run.target, url="http://host")], [run], ORIGIN)
