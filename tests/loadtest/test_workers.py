"""Several processes send what one sends, begin together, and are one run; nothing that happens to them ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import pytest

from livery_loadtest import workers
from livery_loadtest.columns import Columns
from livery_loadtest.dialect import Dialect
from livery_loadtest.drive import Glance, Observer, look_away
from livery_loadtest.options import Options
from livery_loadtest.script import Planned, Script
from livery_loadtest.session import Manner, find_served, run_session
from livery_loadtest.spec import parse_workload
from livery_loadtest.target import Target, TargetUnusable
from livery_loadtest.workers import ClientFailed, measure, share_out
from loadtest.driving import drive
from loadtest.known_server import CUT, SILENT_USAGE, KnownServer
from loadtest.raw_server import good, raw_server, read_request


def script(count: int) -> Script:
    """Requests of an open loop, the last of them a conversation of three turns, one that fails, one that leaves."""
    one = [Planned(index, index * 0.001, "pirate", f"prompt {index}", 4) for index in range(count)]
    more = [
        Planned(count, 0.0, "json", "turn 0", 4, tenant="acme"),
        Planned(count + 1, None, "json", "turn 1", 4, follows=count, tenant="acme"),
        Planned(count + 2, None, "json", "turn 2", 4, follows=count + 1, tenant="acme"),
        Planned(count + 3, 0.0, CUT, "cut", 4),
        Planned(count + 4, 0.0, "pirate", "structured", 4, json_schema={"type": "object"}),
        Planned(count + 5, 0.0, "pirate", "leaves", 4, leave_after=1),
    ]
    return Script([*one, *more])


def sent(server: KnownServer) -> list[str]:
    told = sorted(str(sorted(seen.items())) for seen in server.seen)
    server.seen.clear()
    return told


async def test_several_processes_send_what_one_does(faulty: KnownServer, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty.models.append("json")
    monkeypatch.setenv("ACME_KEY", "k-acme")
    options = Options(dialect=Dialect(chat=True), key_envs={"acme": "ACME_KEY"}, keep_text=True)
    target = Target("faulty", faulty.url, fields={"pirate": {"lora": [1]}})
    alone = await drive(script(12), target, options)
    expected = sent(faulty)
    looks: list[Glance] = []
    several = await measure(script(12), target, options, processes=3, observer=looks.append)
    assert sent(faulty) == expected
    assert several.health.processes == 3
    assert not several.interrupted
    assert [record.planned for record in several.records] == [record.planned for record in alone.records]
    for one, other in zip(alone.records, several.records, strict=True):
        for name in (
            "text",
            "error",
            "error_message",
            "output_tokens",
            "finish_reason",
            "status",
            "left",
            "model_told",
        ):
            assert getattr(one, name) == getattr(other, name), name
        assert len(one.events) == len(other.events)
        assert other.planned.at is None or other.intended == several.started + other.planned.at
        assert several.started <= other.intended <= other.sent <= other.finished <= several.started + several.seconds
    last = looks[-1]
    assert (last.sent, last.done, last.failed, last.running) == (18, 18, 1, 0)


async def test_streams_are_shared_out_and_runs_folded_together(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    requests = [Planned(index, None, "pirate", f"prompt {index}", 4) for index in range(10)]
    run = await measure(Script(requests), Target("left", server.url), Options(streams=3, fold=True), processes=2)
    assert [record.error for record in run.records] == [None] * 10
    assert {len(record.events) for record in run.records} == {2}
    assert run.gaps is not None and run.gaps.total == 10 * 3
    assert server.most_under_way <= 3


async def test_folding_keeps_how_many_tokens_came_from_a_server_that_does_not_tell(faulty: KnownServer) -> None:
    requests = [Planned(index, None, SILENT_USAGE, f"prompt {index}", 5 + index) for index in range(3)]
    run = await measure(Script(requests), Target("faulty", faulty.url), Options(streams=2, fold=True))
    assert [(len(record.events), record.output_tokens) for record in run.records] == [(2, None)] * 3
    assert Columns.of(run).tokens.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("streams", "processes", "count", "expected"),
    [(0, 3, 7, [0, 0, 0]), (5, 3, 7, [2, 2, 1]), (2, 8, 7, [1, 1]), (0, 8, 2, [0, 0]), (4, 1, 0, [4])],
)
def test_no_process_is_without_work(streams: int, processes: int, count: int, expected: Sequence[int]) -> None:
    requests = [Planned(index, 0.0, "m", "x", 1) for index in range(count)]
    parts = share_out(Script(requests), Options(streams=streams), processes)
    assert [own.streams for _, own in parts] == expected
    assert sorted(one.index for own, _ in parts for one in own) == list(range(count))


def test_a_conversation_stays_with_one_process() -> None:
    turns = [Planned(i, None if i % 3 else 0.0, "m", "x", 1, follows=i - 1 if i % 3 else None) for i in range(12)]
    parts = share_out(Script(turns), Options(), 2)
    assert [[one.index for one in own] for own, _ in parts] == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_run_with_what_had_ended(number: signal.Signals) -> None:
    answered = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        while True:
            await read_request(reader)
            answered += 1
            if answered > 3:
                os.kill(os.getpid(), number)
                await reader.read()
            writer.write(good("a"))

    requests = [Planned(index, None, "m", "x", 1) for index in range(9)]
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    async with raw_server(handle) as url:
        run = await measure(Script(requests), Target("left", url), Options(streams=1))
    assert run.interrupted
    assert [record.planned.index for record in run.records] == [0, 1, 2]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


async def test_a_signal_before_the_senders_are_ready_ends_the_run_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, signal, sys; os.kill(os.getppid(), signal.SIGINT); sys.stdin.buffer.read()"
    monkeypatch.setattr(workers, "SENDER", (sys.executable, "-c", code))
    run = await measure(script(1), Target("left", "http://127.0.0.1:9"), Options())
    assert run.interrupted
    assert not run.records


async def test_a_signal_between_two_runs_keeps_the_one_before(pair: tuple[KnownServer, KnownServer]) -> None:
    """Also while nothing is awaited, as when a long script is made."""
    server, _ = pair
    workload = parse_workload("{name: some, arrivals: {kind: closed, streams: 2}, requests: 4, warm_up: 2}")
    subject = await find_served(Target("left", server.url))
    said: list[str] = []

    def begin(what: str, total: int) -> Observer:
        said.append(what)
        if len(said) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return look_away

    (measured,) = await run_session([workload], [subject], Manner(repeats=3), begin)
    assert [(run.repeat, len(run.records), run.interrupted) for run in measured.runs] == [(0, 4, True)]
    assert said == ["left, some, warm-up", "left, some, 1 of 3", "left, some, warm-up"]


async def test_a_target_that_cannot_be_sent_to_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_KEY", raising=False)
    with pytest.raises(TargetUnusable, match="ACME_KEY"):
        await measure(script(1), Target("left", "http://127.0.0.1:9"), Options(key_envs={"acme": "ACME_KEY"}))


def dying(when: str) -> tuple[str, ...]:
    code = "import livery_loadtest.sender as sender, os\n"
    return (sys.executable, "-c", f"{code}{when}\nsender.main()")


async def test_a_process_that_ends_before_it_begins_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SENDER", dying("os._exit(7)"))
    with pytest.raises(ClientFailed, match="status 7"):
        await measure(script(1), Target("left", "http://127.0.0.1:9"), Options())


async def test_a_process_that_ends_midway_makes_the_run_invalid(
    pair: tuple[KnownServer, KnownServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = pair
    kills = "row = sender.as_row\nsender.as_row = lambda one: os._exit(9) if one.planned.index == 1 else row(one)"
    monkeypatch.setattr(workers, "SENDER", dying(kills))
    requests = [Planned(index, None, "pirate", f"prompt {index}", 4) for index in range(4)]
    run = await measure(Script(requests), Target("left", server.url), Options(streams=2), processes=2)
    assert [record.planned.index for record in run.records] == [0, 2]
    assert run.health.reasons[-1] == "1 of 2 client processes ended midway: what they sent is lost"


async def test_the_only_process_that_ends_midway_makes_the_run_invalid_and_loses_no_other(
    pair: tuple[KnownServer, KnownServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = pair
    monkeypatch.setattr(workers, "SENDER", dying("sender.as_row = lambda one: os._exit(9)"))
    workload = parse_workload("{name: some, arrivals: {kind: closed, streams: 2}, requests: 4, warm_up: 0}")
    subject = await find_served(Target("left", server.url))
    (measured,) = await run_session([workload], [subject], Manner(repeats=2, verify=2), lambda *_: look_away)
    assert [run.repeat for run in measured.runs] == [0, 1]
    for run in measured.runs:
        assert not run.records and not run.interrupted
        assert run.health.reasons == ("1 of 1 client processes ended midway: what they sent is lost",)
    assert measured.verified["left"].compared == ()


async def test_keys_never_cross_to_the_senders_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from livery_loadtest.frames import Work, frame

    monkeypatch.setenv("ACME_KEY", "k-acme-secret")
    options: Mapping[str, str] = {"acme": "ACME_KEY"}
    work = frame(Work(list(script(1).requests), Target("t", "http://x"), Options(key_envs=options)))
    assert b"ACME_KEY" in work and b"k-acme-secret" not in work
