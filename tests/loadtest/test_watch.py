"""The server's metrics sampled beside a run, and what a script changes at it meanwhile."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from livery_loadtest import watch
from livery_loadtest.meanwhile import LOAD, UNLOAD, Meanwhile
from livery_loadtest.options import Options
from livery_loadtest.record import Load
from livery_loadtest.script import Change, Planned, Script
from livery_loadtest.spec import Hook
from livery_loadtest.target import KEY_ENV, METRICS_KEY_ENV, Target
from livery_loadtest.watch import Watch, parse_metrics
from livery_loadtest.workers import measure
from loadtest.known_server import REFUSED, KnownServer
from loadtest.raw_server import raw_server, read_whole

METRICS = """\
# HELP x_total Things.
# TYPE x_total counter
x_total{b="2",a="q\\"uote"} 3
x_created 1.5e9
# TYPE h histogram
h_bucket{le="1"} 1
h_bucket{le="+Inf"} 2
h_sum 2.5
h_count 2
process_resident_memory_bytes 1e6
"""


def test_metrics_are_read_without_what_is_too_much() -> None:
    assert parse_metrics(METRICS) == {
        'x_total{a="q\\"uote",b="2"}': 3.0,
        "h_sum": 2.5,
        "h_count": 2.0,
        "process_resident_memory_bytes": 1e6,
    }
    with pytest.raises(ValueError):
        parse_metrics("{]\n")


async def sampled(server: KnownServer, count: int) -> Watch:
    """A watch that ended after it had asked `count` times."""
    looking = Watch(Target("left", server.url), 0.001, time.perf_counter())
    running = asyncio.ensure_future(looking.run())
    while server.scrapes < count:
        await asyncio.sleep(0.001)
    looking.end()
    await running
    return looking


async def test_metrics_behind_a_key_are_sampled_with_it_and_told_to_be_missing_without(
    pair: tuple[KnownServer, KnownServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the requests' key, or one of its own; of a run without samples it is known why."""
    server, target = pair[0], Target("left", pair[0].url)
    server.metrics, server.metrics_key = METRICS, "sk-metrics"
    script = Script([Planned(0, None, "pirate", "a b", 2)])
    for variables, trouble in (
        ({}, f"/metrics answers 401; a key that opens it goes into {METRICS_KEY_ENV}"),
        ({KEY_ENV: "sk-other"}, f"/metrics answers 401; a key that opens it goes into {METRICS_KEY_ENV}"),
        ({KEY_ENV: "sk-metrics"}, ""),
        ({KEY_ENV: "sk-other", METRICS_KEY_ENV: "sk-metrics"}, ""),
    ):
        for name in (KEY_ENV, METRICS_KEY_ENV):
            monkeypatch.delenv(name, raising=False)
        for name, key in variables.items():
            monkeypatch.setenv(name, key)
        run = await measure(script, target, Options(streams=1), sample_s=60.0)
        assert run.unsampled == trouble
        assert bool(run.samples) == (not trouble)


async def test_a_server_is_sampled_to_the_end(
    pair: tuple[KnownServer, KnownServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = pair
    server.metrics = METRICS
    told = (await sampled(server, 5)).samples
    assert len(told) >= 5
    assert all(sample.values["h_count"] == 2 for sample in told)
    assert [sample.at for sample in told] == sorted(sample.at for sample in told)
    monkeypatch.setattr(watch, "MOST_SAMPLES", 8)
    server.scrapes = 0
    assert 4 <= len((await sampled(server, 20)).samples) <= 8


@pytest.mark.parametrize("metrics", [None, "{]\n", "x" * 100])
async def test_a_server_without_metrics_is_left_alone(
    pair: tuple[KnownServer, KnownServer], metrics: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = pair
    server.metrics = metrics
    monkeypatch.setattr(watch, "MOST_BYTES", 50)
    looking = Watch(Target("left", server.url), 0.001, time.perf_counter())
    running = asyncio.ensure_future(looking.run())
    await asyncio.sleep(0)
    looking.end()
    await running
    assert looking.samples == []
    never = Watch(Target("left", server.url), 0.0, time.perf_counter())
    await never.run()


async def do(script: Script, server: KnownServer, *, allow_hooks: bool = False) -> Meanwhile:
    meanwhile = Meanwhile(script, Target("left", server.url), time.perf_counter(), allow_hooks=allow_hooks)
    await meanwhile.run()
    return meanwhile


async def test_adapters_are_unloaded_and_loaded_in_their_turn(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    changes = [Change(0.0, "pirate", "/adapters/pirate"), Change(0.01, REFUSED, "/x"), Change(0.02, "json", "/y")]
    loads = (await do(Script((), changes), server)).loads
    assert server.changes[:2] == [
        (UNLOAD, {"lora_name": "pirate"}),
        (LOAD, {"lora_name": "pirate", "lora_path": "/adapters/pirate"}),
    ]
    assert [path for path, _ in server.changes] == [UNLOAD, LOAD] * 3
    assert [(load.model, load.error is None) for load in loads] == [("pirate", True), (REFUSED, False), ("json", True)]
    assert loads[1].error == f"{LOAD}: http 404: no such adapter"
    assert all(load.seconds > 0 for load in loads)
    assert [load.at >= change.at for load, change in zip(loads, changes, strict=True)] == [True] * 3


async def test_what_has_begun_is_finished_and_what_has_not_is_not_begun() -> None:
    asked = asyncio.Event()
    release = asyncio.Event()
    paths = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path, _ = await read_whole(reader)
            paths.append(path)
            asked.set()
            await release.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with raw_server(handle) as url:
        script = Script((), [Change(0.0, "a", "/a"), Change(0.0, "b", "/b"), Change(3600.0, "c", "/c")])
        meanwhile = Meanwhile(script, Target("left", url), time.perf_counter())
        running = asyncio.ensure_future(meanwhile.run())
        await asked.wait()
        meanwhile.end()
        release.set()
        await running
    assert paths == [UNLOAD, LOAD]
    assert [load.model for load in meanwhile.loads] == ["a"]


async def test_a_server_that_is_gone_is_an_error_of_the_load() -> None:
    meanwhile = Meanwhile(Script((), [Change(0.0, "a", "/a")]), Target("gone", "http://127.0.0.1:9"), 0.0)
    await meanwhile.run()
    (load,) = meanwhile.loads
    assert isinstance(load, Load) and load.error is not None and load.error.startswith(LOAD)


async def test_hooks_run_where_they_are_allowed_and_tell_their_end(
    pair: tuple[KnownServer, KnownServer], tmp_path: Path
) -> None:
    server, _ = pair
    hooks = [
        Hook(at_s=0.0, run="echo $TARGET_NAME $TARGET_URL; exit 3", name="tell"),
        Hook(at_s=0.0, run=f"touch {tmp_path}/begun; sleep 3600 & sleep 3600", timeout_s=0.2),
        Hook(at_s=0.0, run="head -c 100000 /dev/zero | tr '\\0' x; echo end"),
    ]
    script = Script((), (), hooks)
    assert (await do(script, server)).hooked == []
    assert not (tmp_path / "begun").exists()
    done = {one.name: one for one in (await do(script, server, allow_hooks=True)).hooked}
    told = done["tell"]
    assert (told.status, told.output) == (3, f"left {server.url}\n")
    assert done[hooks[1].run].status is None
    assert done[hooks[2].run].output.endswith("xxend\n") and len(done[hooks[2].run].output) == 2000
    late = Script((), (), [Hook(at_s=3600.0, run="exit 1")])
    meanwhile = Meanwhile(late, Target("left", server.url), time.perf_counter(), allow_hooks=True)
    running = asyncio.ensure_future(meanwhile.run())
    await asyncio.sleep(0)
    meanwhile.end()
    await running
    assert meanwhile.hooked == []


async def test_a_run_has_what_was_seen_and_done_beside_it(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    server.metrics = METRICS
    requests = [Planned(index, 0.0, "pirate", "x", 4) for index in range(4)]
    script = Script(requests, [Change(0.0, "json", "/json")], [Hook(at_s=0.0, run="echo hi", name="hi")])
    run = await measure(script, Target("left", server.url), Options(), sample_s=0.01, allow_hooks=True)
    assert [record.error for record in run.records] == [None] * 4
    assert len(run.samples) >= 2
    assert [load.model for load in run.loads] == ["json"]
    assert [(hooked.name, hooked.output) for hooked in run.hooked] == [("hi", "hi\n")]
