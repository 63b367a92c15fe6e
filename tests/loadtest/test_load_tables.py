"""A result in a terminal: all that a reader needs first, nothing that was found left unsaid, markup harmless."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from livery_loadtest.capacity import Capacity, Trial
from livery_loadtest.intervals import Estimate
from livery_loadtest.record import Run
from livery_loadtest.report.page import page
from livery_loadtest.report.result import Result, Server, make_result
from livery_loadtest.report.table import print_result
from livery_loadtest.report.words import (
    arrivals,
    between,
    bounds,
    duration,
    number,
    objective,
    share,
    span,
    with_bounds,
)
from livery_loadtest.spec import Slo
from livery_loadtest.verify import Compared, Finding, Verification
from loadtest.made_runs import BUSY, GOOD, Making, made_run, workload
from loadtest.test_report_page import self_contained
from loadtest.test_result_document import ORIGIN, made_result


def printed(result: Result) -> str:
    console = Console(file=StringIO(), width=160, force_terminal=False, record=True)
    print_result(result, console)
    return console.export_text()


def of(*runs: Run, **more: object) -> Result:
    servers = [Server(name=name, url="http://host") for name in dict.fromkeys(run.target for run in runs)]
    return make_result(workload(), servers, runs, ORIGIN, **more)  # type: ignore[arg-type]


def test_what_was_found_is_printed() -> None:
    text = printed(made_result(repeats=2))
    for told in (
        *("made: open loop, Poisson, 20 requests/s", "A CPU", "ours", "theirs", "output tok/s", "TTFT", "ITL"),
        *("adapter-0", "gold", "http 503", "told to wait 2.00 s", "the server <is> full", "Jain's index", "cold TTFT"),
        *("clients left as planned", "came from the server's cache", "TTFT ≤ 200 ms", "bootstrap", "2 repeats"),
    ):
        assert told in text, told
    assert "invalid" not in text
    assert "interrupted" not in text


def test_an_interval_is_told_where_there_is_one() -> None:
    assert with_bounds(Estimate(11.1, 9.07, 13.2), "MiB an hour") == "11.1 MiB an hour (9.07 to 13.2)"
    assert with_bounds(Estimate(0, 0, 0), "") == "0"


def test_reasons_to_doubt_come_first() -> None:
    run = made_run(Making(requests=30), "ours", 0, BUSY)
    cut = Run("ours", 0, run.started, run.seconds, run.records, BUSY, interrupted=True)
    text = printed(of(cut))
    assert text.index("invalid: the client was the bottleneck: ours, repeat 1") < text.index("output tok/s")
    assert text.index("interrupted") < text.index("output tok/s")


def test_markup_in_names_is_text() -> None:
    run = made_run(Making(requests=30, tenants=("[bold]x", "[/]y")), "[red]ours")
    text = printed(of(run))
    for told in ("[red]ours", "[bold]x", "[/]y"):
        assert told in text


def test_requests_that_were_sent_twice_are_told_in_both_reports() -> None:
    run = made_run(Making(requests=30), "ours")
    said = ("sent twice", "a kept connection was just closed")
    quiet = of(run)
    assert said[0] not in printed(quiet) and said[1] not in self_contained(page([quiet])).text
    for record in run.records[:3]:
        record.retried = True
    told = of(run)
    assert "ours: 3 requests were sent twice" in printed(told)
    assert said[1] in self_contained(page([told])).text


def test_the_page_says_what_latencies_count_from() -> None:
    run = made_run(Making(requests=30), "ours")
    chats = {"kind": "uniform", "low": 1, "high": 4}
    loads = {
        "from when a stream was free for the request, connecting included": {"arrivals": {"kind": "closed"}},
        "from when a request should have been sent, whether the client was late or not, connecting included": {},
        "when the pause after an answer was over": {"endpoint": "chat", "conversations": {"turns": chats}},
    }
    for says, fields in loads.items():
        found = make_result(workload(**fields), [Server(name="ours", url="http://host")], [run], ORIGIN)
        assert says in self_contained(page([found])).text


def test_nothing_measured_is_said() -> None:
    assert "nothing was measured" in printed(make_result(workload(), [], [], ORIGIN))
    assert "ours" in printed(of(Run("ours", 0, 0.0, 0.0, [], GOOD)))


def test_answers_of_other_adapters_are_named() -> None:
    compared = (
        Compared(7, "pirate", Finding.WRONG_ADAPTER, 2, "arr", "hello", "json"),
        Compared(8, "pirate", Finding.SAME, 5, "hello", "hello", "pirate"),
        Compared(9, "pirate", Finding.NOT_LOOKED_INTO, 3, "hear", "hello"),
    )
    text = printed(of(made_run(Making(requests=30), "ours"), verified={"ours": Verification("PEFT", 3, compared)}))
    assert "of 3 answers of 3 models, compared with PEFT: 1 same, 1 wrong adapter, 1 not looked into (of those" in text
    assert "request 7 asked pirate and was answered as json" in text


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (Capacity(8.0, 8.4, True, (Trial(8.0, 0.995, True), Trial(8.4, 0.9, False, "too slow"))), "8.00"),
        (Capacity(8.0, None, False, (Trial(8.0, 0.995, True),)), "not confirmed"),
        (Capacity(None, 1.0, False, (Trial(1.0, 0.1, False, "too slow"),)), "none of 1 rates held"),
        (
            Capacity(8.0, None, False, (Trial(8.0, 0.995, True), Trial(9.0, 0.1, False, "cut", True))),
            "2 trials, interrupted",
        ),
    ],
)
def test_a_capacity_is_told_in_both_reports(found: Capacity, says: str) -> None:
    result = of(made_run(Making(requests=30), "ours"), capacity=found)
    assert says in printed(result)
    text = self_contained(page([result])).text
    assert "Capacity search" in text
    assert all(trial.because in text for trial in found.trials)
    assert ("8.00" in text) is (found.highest is not None)


def test_numbers_are_as_people_read_them() -> None:
    assert [number(value) for value in (0, 0.01234, 4.5678, 78.94, 1234.5, None, float("nan"))] == [
        *("0", "0.0123", "4.57", "78.9", "1,234", "–", "–")
    ]
    assert [duration(value) for value in (0.0123, 0.5, 12, 1234.5, None)] == [
        "12.3 µs",
        "500 µs",
        "12.0 ms",
        "1.23 s",
        "–",
    ]
    assert [share(value) for value in (0.0, 1.0, 0.99999, 0.0001, 0.5, None)] == [
        *("0 %", "100 %", ">99.9 %", "<0.1 %", "50.0 %", "–")
    ]
    assert [span(value) for value in (3.21, 42, 200, 7500)] == ["3.2 s", "42 s", "3 min 20 s", "2 h 5 min"]
    assert between(Estimate(1000, 900, 1100)) == "900 ms to 1.10 s"
    assert between(Estimate(10, 9, 11)) == "9.00 to 11.0 ms"
    assert bounds(Estimate(3, 3, 3)) == between(Estimate(3, 3, 3)) == ""
    assert objective(Slo()) == ""


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ({"kind": "closed", "streams": 4}, "closed loop, 4 streams"),
        ({"kind": "gamma", "rate": 2, "cv": 4}, "open loop, Gamma with cv 4, 2 requests/s"),
        ({"kind": "trace", "file": "t.csv", "speed": 2}, "open loop, the times of t.csv, 2 × as fast"),
        ({"kind": "azure", "rate": 3}, "open loop, gaps as in the Azure conv trace, 3 requests/s"),
        ({"kind": "azure", "trace": "code"}, "open loop, gaps as in the Azure code trace"),
    ],
)
def test_arrivals_are_told_in_words(kind: dict[str, object], says: str) -> None:
    assert arrivals(workload(arrivals=kind)) == says
