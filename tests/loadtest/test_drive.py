"""A script on a real server: what is sent when, what counts from when, and that nothing a server does ends a run."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections import Counter
from itertools import pairwise

import pytest

from livery_loadtest import wire
from livery_loadtest.columns import Columns
from livery_loadtest.dialect import Dialect
from livery_loadtest.drive import NOT_SENT, Glance, drive_part
from livery_loadtest.options import Options
from livery_loadtest.record import Run
from livery_loadtest.script import Planned, Script
from livery_loadtest.spec import parse_workload
from livery_loadtest.target import KEY_ENV, Target, TargetUnusable
from livery_loadtest.wire import OUT_OF_DESCRIPTORS
from loadtest.driving import drive
from loadtest.known_server import CUT, FAILING, MISNAMED, REFUSED, SILENT_USAGE, UNFINISHED, KnownServer
from loadtest.raw_server import HEAD, answering, good, raw_server, read_request, says


def planned(index: int, at: float | None = None, model: str = "pirate", **fields: object) -> Planned:
    return Planned(index, at, model, f"prompt {index}", 4, **fields)  # type: ignore[arg-type]


def closed(count: int, model: str = "pirate") -> Script:
    return Script([planned(index, model=model) for index in range(count)])


CHAT = Dialect(chat=True)


async def test_a_closed_loop_sends_everything_once_by_so_many_streams(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    run = await drive(closed(20), Target("left", server.url), Options(streams=3, keep_text=True, repeat=2))
    assert [record.planned.index for record in run.records] == list(range(20))
    assert [record.error for record in run.records] == [None] * 20
    assert {record.text for record in run.records} == {"pirate:0 pirate:1 pirate:2 pirate:3 "}
    assert sorted(str(seen["prompt"]) for seen in server.seen) == sorted(f"prompt {index}" for index in range(20))
    assert 1 <= server.most_under_way <= 3
    assert (run.target, run.repeat, run.interrupted, run.health.processes) == ("left", 2, False, 1)
    assert run.started <= min(record.sent for record in run.records)
    assert run.started + run.seconds == pytest.approx(max(record.finished for record in run.records))


async def test_the_request_is_worded_as_asked(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    schema = {"type": "object"}
    script = Script([planned(0), planned(1, model="json", json_schema=schema)])
    target = Target("left", server.url, fields={"json": {"lora": [1]}})
    await drive(script, target, Options(streams=1, dialect=Dialect(temperature=0.5)))
    plain, structured = server.seen
    assert plain == {
        **{"server": "left", "path": "/v1/completions", "model": "pirate", "prompt": "prompt 0", "max_tokens": 4},
        **{"temperature": 0.5, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True},
    }
    assert structured["lora"] == [1]
    assert "ignore_eos" not in structured
    assert structured["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }


async def test_an_open_loop_waits_for_no_answer_and_counts_from_the_intended_time() -> None:
    """No answer comes before all requests are there: a client that waited for one would wait forever."""
    arrived: list[bytes] = []
    all_there = asyncio.Event()
    count = 8

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            arrived.append(await read_request(reader))
            if len(arrived) == count:
                all_there.set()
            await all_there.wait()
            writer.write(good("a", model="pirate"))

    script = Script([planned(index, index * 0.01) for index in range(count)])
    async with raw_server(handle) as url:
        run = await drive(script, Target("stalling", url), Options())
    assert [record.error for record in run.records] == [None] * count
    for record in run.records:
        assert record.planned.at is not None
        assert record.intended == run.started + record.planned.at <= record.sent
        # All answers came at once, so each waited from its own time on: the first, longest.
        assert record.events[0] >= max(one.sent for one in run.records)


async def test_in_a_closed_loop_a_request_counts_from_when_its_stream_was_free() -> None:
    """Before there is a connection: a server that is slow to take one isn't flattered."""
    async with answering(good("a", model="pirate")) as url:
        run = await drive(closed(3), Target("ours", url), Options(streams=1))
    first, *others = run.records
    assert 0 < first.intended < first.connected <= first.sent
    for before, record in pairwise([first, *others]):
        assert before.finished <= record.intended <= record.sent
    assert Columns.of(run).ttft.tolist() == pytest.approx([one.events[0] - one.intended for one in run.records])


async def test_a_request_that_was_sent_twice_counts_from_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the server's closing took isn't taken for the client's lateness, nor made up for it."""
    monkeypatch.setattr(wire, "STALE_S", 60.0)  # a machine may be slow
    bodies = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await read_request(reader))
        writer.write(good("a", model="pirate"))
        bodies.append(await read_request(reader))

    async with raw_server(handle) as url:
        driven = await drive_part(closed(2), Target("closing", url), Options(streams=1))
    once, twice = driven.records
    assert len(bodies) == 3 and (once.retried, twice.retried) == (False, True)
    assert twice.error is None and twice.intended <= twice.sent < twice.connected < twice.events[0]
    assert driven.vitals.delays[1] == pytest.approx(twice.sent - twice.intended, abs=1e-9)


async def test_a_client_that_is_held_up_flatters_nobody(pair: tuple[KnownServer, KnownServer]) -> None:
    """All requests were due a second ago: they leave at once, count from then, and the run says it is invalid."""
    server, _ = pair
    begin = time.perf_counter() - 1.0
    script = Script([planned(index, 0.0) for index in range(5)])
    run = await drive(script, Target("left", server.url), Options(), begin=begin)
    assert run.started == begin
    for record in run.records:
        assert record.intended == begin
        assert record.events[0] - record.intended > 1.0 > record.events[0] - record.sent
    assert run.health.send_delay_ms[0] > 1000
    assert not run.health.valid
    assert any("late at p99" in reason for reason in run.health.reasons)


async def test_in_a_closed_loop_a_chats_later_turn_can_be_late(pair: tuple[KnownServer, KnownServer]) -> None:
    """It was due a second before the answer that it waits for: that is the client's, and told as such."""
    server, _ = pair
    chat = Script([planned(0), planned(1, follows=0, pause_s=-1.0)])
    run = await drive(chat, Target("left", server.url), Options(streams=1, dialect=CHAT))
    assert run.health.send_delay_ms[2] >= 1000
    assert any("late at p99" in reason for reason in run.health.reasons)


async def test_a_loop_that_stands_still_is_seen() -> None:
    blocked = []

    def block(_: Glance) -> None:
        if not blocked:
            blocked.append(1)
            time.sleep(0.3)

    release = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await release.wait()
        writer.write(good("a", model="pirate"))

    async with raw_server(handle) as url:
        driving = asyncio.ensure_future(drive(closed(1), Target("left", url), Options(streams=1), block))
        while not blocked:
            await asyncio.sleep(0.01)
        release.set()
        run = await driving
    assert run.health.loop_lag_ms[2] > 200
    assert any("event loop lagged" in reason for reason in run.health.reasons)


def chat(*turns: Planned) -> Script:
    return Script(list(turns))


async def test_a_conversation_repeats_what_was_said_and_pauses(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    script = chat(
        planned(0, 0.0),
        planned(1, None, follows=0, pause_s=0.02),
        planned(2, None, follows=1),
        planned(3, 0.0, model="json"),
    )
    run = await drive(script, Target("left", server.url), Options(dialect=CHAT))
    first, second, third, _ = run.records
    assert second.intended == first.finished + 0.02 <= second.sent
    assert third.intended == second.finished
    said = [seen["messages"] for seen in server.seen if seen["model"] == "pirate"]
    answer = {"role": "assistant", "content": "pirate:0 pirate:1 pirate:2 pirate:3 "}
    users = [{"role": "user", "content": f"prompt {index}"} for index in range(3)]
    assert said == [users[:1], [users[0], answer, users[1]], [users[0], answer, users[1], answer, users[2]]]
    assert {record.text for record in run.records} == {""}


async def test_turns_after_a_failed_one_are_not_sent_and_counted(faulty: KnownServer) -> None:
    script = chat(planned(0, None, CUT), planned(1, None, CUT, follows=0), planned(2), planned(3, follows=2))
    run = await drive(script, Target("faulty", faulty.url), Options(dialect=CHAT, streams=2))
    assert [record.error for record in run.records] == ["stream cut", NOT_SENT, None, None]
    assert "turn 1" in run.records[1].error_message
    assert len(faulty.seen) == 3


async def test_no_turn_is_sent_after_the_time_is_over(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    script = chat(planned(0, 0.0), planned(1, None, follows=0, pause_s=3600))
    run = await drive(script, Target("left", server.url), Options(dialect=CHAT, duration_s=60))
    assert [record.planned.index for record in run.records] == [0]


async def test_every_kind_of_bad_answer_is_counted_and_none_ends_the_run(faulty: KnownServer) -> None:
    models = ["pirate", REFUSED, CUT, FAILING, SILENT_USAGE, UNFINISHED, MISNAMED]
    script = Script([planned(index, model=models[index % len(models)]) for index in range(3 * len(models))])
    run = await drive(script, Target("faulty", faulty.url), Options(streams=4))
    kinds = {model: {one.error for one in run.records if one.planned.model == model} for model in models}
    assert kinds == {
        "pirate": {None},
        REFUSED: {"http 404"},
        CUT: {"stream cut"},
        FAILING: {"error event"},
        SILENT_USAGE: {None},
        UNFINISHED: {"no finish reason"},
        MISNAMED: {"wrong model"},
    }
    assert {one.output_tokens for one in run.records if one.planned.model == SILENT_USAGE} == {None}
    assert Counter(one.error for one in run.records)["http 404"] == 3
    assert all(one.finished >= one.sent > 0 for one in run.records)
    lenient = await drive(closed(1, MISNAMED), Target("faulty", faulty.url, echoes=False), Options(streams=1))
    assert (lenient.records[0].error, lenient.records[0].model_told) == (None, "base")


async def test_a_server_that_hangs_or_is_gone_costs_its_own_requests_alone() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (good("a", model="pirate"), HEAD + says("a")):
            await read_request(reader)
            writer.write(answer)
        await reader.read()

    async with raw_server(handle) as url:
        run = await drive(closed(6), Target("hanging", url), Options(streams=1, silence_s=0.05))
    assert [record.error for record in run.records] == [None, "silent"] * 3
    gone = await drive(closed(3), Target("gone", url), Options(streams=2))
    assert [record.error for record in gone.records] == ["connection refused"] * 3
    assert gone.health.reasons == ()
    with pytest.raises(TargetUnusable, match=r"target nowhere: no-such-host.invalid"):
        await drive(closed(1), Target("nowhere", "http://no-such-host.invalid"), Options(streams=1))


async def test_clients_leave_as_planned(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    script = Script([planned(0, leave_after=2), planned(1), planned(2, leave_after=0)])
    run = await drive(script, Target("left", server.url), Options(streams=1))
    assert [(one.left, one.error) for one in run.records] == [(True, None), (False, None), (True, None)]
    assert [len(one.events) for one in run.records] == [2, 4, 0]


async def test_tenants_bring_their_keys_from_the_environment(
    pair: tuple[KnownServer, KnownServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = pair
    script = Script([planned(0, tenant="acme"), planned(1)])
    options = Options(streams=1, key_envs={"acme": "ACME_KEY"})
    monkeypatch.delenv("ACME_KEY", raising=False)
    with pytest.raises(TargetUnusable, match=r"no key in ACME_KEY \(tenant acme\)"):
        await drive(script, Target("left", server.url), options)
    monkeypatch.setenv("ACME_KEY", "k-acme")
    monkeypatch.delenv(KEY_ENV, raising=False)
    await drive(script, Target("left", server.url), options)
    monkeypatch.setenv("OPERATOR", "k-operator")
    await drive(script, Target("left", server.url, key_env="OPERATOR"), options)
    assert [seen.get("key") for seen in server.seen] == ["Bearer k-acme", None, "Bearer k-acme", "Bearer k-operator"]


async def interrupted(how: str) -> tuple[Run, int]:
    """A run whose second request is never answered, interrupted after its first is done; and what was connected."""
    under_way = asyncio.Event()
    ended = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ended
        await read_request(reader)
        writer.write(good("a", model="pirate"))
        await read_request(reader)
        under_way.set()
        await reader.read()
        ended += 1

    stop = asyncio.Event()
    async with raw_server(handle) as url:
        driving = asyncio.ensure_future(drive(closed(9), Target("left", url), Options(streams=1), stop=stop))
        await under_way.wait()
        if how == "stop":
            stop.set()
        else:
            driving.cancel()
        run = await driving
        while not ended:
            await asyncio.sleep(0)
        return run, ended


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_an_interrupted_run_is_what_had_ended(how: str) -> None:
    run, ended = await interrupted(how)
    assert run.interrupted
    assert [(record.planned.index, record.error) for record in run.records] == [(0, None)]
    assert run.seconds >= run.records[0].finished - run.started
    assert ended == 1


async def test_a_glance_shows_what_is_under_way_and_the_last_one_all(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    seen: list[Glance] = []
    await drive(closed(7), Target("left", server.url), Options(streams=2), seen.append)
    last = seen[-1]
    assert (last.sent, last.running, last.done, last.failed, last.tokens) == (7, 0, 7, 0, 28)
    assert len(last.ttft_s) == 7 and min(last.ttft_s) > 0


async def test_long_runs_fold_what_would_grow(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    run = await drive(closed(6), Target("left", server.url), Options(streams=2, fold=True))
    assert run.gaps is not None and run.gaps.total == 6 * 3
    for record in run.records:
        assert len(record.events) == 2
        assert record.planned.text == ""
        assert record.planned.model == "pirate"


async def test_a_run_that_wanted_more_than_the_client_had_says_so() -> None:
    script = Script([planned(index, 0.0) for index in range(4)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, hard))
        try:
            run = await drive(script, Target("left", f"http://127.0.0.1:{listening.getsockname()[1]}"), Options())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {record.error for record in run.records} == {OUT_OF_DESCRIPTORS}
    assert f"requests failed: {OUT_OF_DESCRIPTORS}" in run.health.reasons


def test_options_are_the_workloads() -> None:
    text = {
        **{"name": "w", "requests": 5, "endpoint": "chat", "temperature": 0.5, "timeout_s": 9, "ignore_eos": False},
        **{"arrivals": {"kind": "closed", "streams": 7}, "tenants": [{"name": "acme", "key_env": "ACME"}]},
    }
    options = Options.of(parse_workload(json.dumps(text)), repeat=3, keep_text=True)
    assert options == Options(
        repeat=3,
        streams=7,
        dialect=Dialect(chat=True, ignore_eos=False, temperature=0.5),
        silence_s=9,
        whole_s=9,
        connect_s=9,
        key_envs={"acme": "ACME"},
        keep_text=True,
    )
    opened = parse_workload(json.dumps({"name": "w", "duration_s": 5, "arrivals": {"kind": "poisson", "rate": 1}}))
    assert (Options.of(opened).streams, Options.of(opened).duration_s) == (0, 5)
