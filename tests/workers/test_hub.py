"""What workers ask of their parent, over real pairs of sockets in one process: limits and room are the server's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from typing import Any

import pytest

from livery.engine.base import (
    AdapterLoadFailed,
    AdapterRef,
    EngineConfig,
    EngineDead,
    EngineError,
    EngineRestarting,
    GenerationRequest,
    SamplingParams,
    TokenDelta,
)
from livery.engine.fake import FakeEngine
from livery.engine.supervisor import SupervisedEngine
from livery.engine.vllm_process import CallFailed
from livery.refusals import Overloaded
from livery.superseding import Superseded
from livery.tenancy import LimitExceeded, Limits, Principal
from livery.tenancy.gate import Wish
from livery.workers import attached
from livery.workers.attached import AttachedEngine
from workers.scenes import Scene, Worker, scene

__all__ = ["scene"]  # a fixture


def limited(**limits: int) -> Principal:
    return Principal("acme", "user", "k1", tenant_limits=Limits(**limits))


async def refused(asked: Awaitable[object], of: str) -> None:
    with pytest.raises(LimitExceeded, match=of):
        await asked


async def test_requests_per_minute_are_counted_over_all_workers(scene: Scene) -> None:
    acme = limited(requests_per_minute=3)
    for worker in (scene.one, scene.other, scene.one):
        (await worker.gate.count(acme)).release()
    for worker in (scene.one, scene.other):
        await refused(worker.gate.count(acme), "requests_per_minute")
        assert worker.gate.rates(acme)["requests"].remaining == 0, "what clients are told in headers"
    scene.clock.now += 20
    (await scene.other.gate.count(acme)).release()
    await refused(scene.one.gate.count(acme), "requests_per_minute")


async def test_tokens_per_minute_are_counted_over_all_workers(scene: Scene) -> None:
    acme, wish = limited(tokens_per_minute=100), Wish(1, 10, 50)
    first = await scene.one.gate.enter(acme, wish, None)
    await refused(scene.other.gate.enter(acme, wish, None), "tokens_per_minute")
    first.begun(10)
    first.spend(30)
    first.leave()
    assert await scene.one.gate.held() is not None, "what was sent before this answer has come"
    second = await scene.other.gate.enter(acme, wish, None)
    with pytest.raises(LimitExceeded, match="10 are free and 60 set aside") as told:
        await scene.one.gate.enter(acme, Wish(1, 10, 40), None)
    assert told.value.retry_after in (1, 2), "what only another worker's request reserved"
    await second.resize(5, 50)
    (await scene.one.gate.enter(acme, Wish(1, 10, 5), None)).leave()
    second.begun(5)
    second.spend(255)  # beyond what was set aside for an answer whose length nobody named
    second.leave()
    assert await scene.other.gate.held() is not None
    with pytest.raises(LimitExceeded, match="Please retry in 117 s") as told:
        await scene.one.gate.enter(acme, Wish(1, 10, 0), None)
    assert told.value.retry_after == 60


async def test_requests_at_once_are_counted_over_all_workers_and_given_back_by_a_lost_one(scene: Scene) -> None:
    acme = limited(concurrent_requests=2)
    for worker in (scene.one, scene.other):
        await worker.gate.count(acme)
    for worker in (scene.one, scene.other):
        await refused(worker.gate.count(acme), "concurrent_requests")
    scene.one.link.close()
    await scene.one.desk.gone.wait()
    await scene.other.gate.count(acme)
    await refused(scene.other.gate.count(acme), "concurrent_requests")


async def test_the_room_is_one_and_a_lost_worker_leaves_it(scene: Scene) -> None:
    free = Principal("acme", "user", None)
    entries = [await worker.gate.enter(free, Wish(1, 7, 1), None) for worker in (scene.one, scene.other, scene.one)]
    for worker in (scene.one, scene.other):
        with pytest.raises(Overloaded):
            await worker.gate.enter(free, Wish(1, 7, 1), None)
    held = await scene.other.gate.held()
    assert (held.sequences, held.tokens) == (3, 21)
    entries[0].leave()
    (await scene.other.gate.enter(free, Wish(1, 7, 1), None)).leave()
    scene.one.link.close()
    await scene.one.desk.gone.wait()
    assert (await scene.other.gate.held()).sequences == 1


async def test_what_is_under_way_is_told_of_all_workers(scene: Scene) -> None:
    scene.one.under_way.begin("acme", ["pirate"])
    scene.other.under_way.begin("acme", ["pirate"])
    scene.other.under_way.begin("zeta", ["pirate", "poet"])
    for worker in (scene.one, scene.other):
        found = await worker.survey.under_way()
        assert (found.of("pirate"), found.of("pirate", "acme"), found.of("poet")) == (3, 2, 1)
    scene.one.under_way.end("acme", ["pirate"])
    assert (await scene.other.survey.under_way()).of("pirate") == 2
    scene.other.link.close()
    await scene.other.desk.gone.wait()
    assert (await scene.one.survey.under_way()).each() == [], "a lost worker has nothing under way"


async def test_what_is_on_its_way_into_one_is_known_to_all_until_it_is_there(scene: Scene) -> None:
    """Or comes to nothing, with its worker too: then whoever remembers that it isn't there looks again."""
    one, other = scene.one, scene.other

    async def heard() -> list[tuple[str, str]]:
        for worker in (one, other, one):
            if not worker.desk.gone.is_set():
                await worker.gate.held()  # what was sent before this answer has come
        return sorted(other.staging)

    with one.staging.begin("pirate", "default"), other.staging.begin("poet", "zeta"):
        with one.staging.begin("pirate", "default"):
            assert await heard() == [("pirate", "default"), ("poet", "zeta")]
        assert await heard() == [("pirate", "default"), ("poet", "zeta")]
        assert ("poet", "zeta") in one.staging
    assert other.settled == []
    assert await heard() == []
    assert (one.settled, other.settled) == (["poet"], ["pirate"])
    with one.staging.begin("corsair", "default"):
        assert await heard() == [("corsair", "default")]
        one.link.close()
        await one.desk.gone.wait()
        assert await heard() == []
    assert other.settled == ["pirate", "corsair"]


async def test_a_lost_worker_takes_its_own_requests_from_the_engine(scene: Scene) -> None:
    def request() -> GenerationRequest:
        return GenerationRequest("same-id", [3, 4], SamplingParams(max_tokens=5, ignore_eos=True))

    streams = [worker.engine.generate(request()) for worker in (scene.one, scene.other)]
    firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await scene.engine.wait_until(lambda engine: engine.open_requests == 2)
    scene.one.link.close()
    await scene.engine.wait_until(lambda engine: engine.open_requests == 1)
    scene.engine.step(5)
    got = [*(await firsts[1]).token_ids]
    async for delta in streams[1]:
        got += delta.token_ids
    assert got == [7, 8, 9, 10, 11]
    firsts[0].cancel()
    with suppress(asyncio.CancelledError):
        await firsts[0]


async def test_who_is_to_end_is_told_to_the_other_workers(scene: Scene) -> None:
    told = Superseded("policy", "ab" * 32, 3, "acme")
    await scene.one.survey.spread(["policy"], superseded=told)
    assert [(one.names, one.superseded) for one in scene.other.renewed] == [(["policy"], told)]
    assert scene.one.renewed == []


@pytest.mark.parametrize("tokens", [0, 2])
async def test_a_request_that_is_dropped_ends_with_what_it_has(scene: Scene, tokens: int) -> None:
    """By the id that the worker gave it, also where another worker has one of that id."""

    async def deltas(worker: Worker) -> list[tuple[list[int], str | None]]:
        request = GenerationRequest("same-id", [3, 4], SamplingParams(max_tokens=3, ignore_eos=True))
        return [(delta.token_ids, delta.finish_reason) async for delta in worker.engine.generate(request)]

    mine = asyncio.create_task(deltas(scene.one))
    await scene.engine.wait_until(lambda engine: engine.open_requests == 1)
    for _ in range(tokens):
        scene.engine.step()
    while len(scene.engine.requests) and scene.engine._generated < tokens:
        await asyncio.sleep(0)
    other = asyncio.create_task(deltas(scene.other))
    await scene.engine.wait_until(lambda engine: engine.open_requests == 2)
    await scene.one.engine.abort("same-id")
    await scene.one.engine.abort("nobody's")
    async with asyncio.timeout(30):
        assert await mine == [*(([7 + index], None) for index in range(tokens)), ([], "abort")]
    scene.engine.step(3)
    assert (await other)[-1][1] == "length"


async def test_a_request_that_is_dropped_as_soon_as_it_is_sent_ends_too(scene: Scene) -> None:
    """Both come in one piece: its task is cancelled before it has begun."""
    request = GenerationRequest("quick", [3, 4], SamplingParams(max_tokens=3, ignore_eos=True))
    stream = scene.one.engine.generate(request)
    first = asyncio.ensure_future(anext(stream))
    while not scene.one.engine._streams.open:
        await asyncio.sleep(0)
    await scene.one.engine.abort("quick")
    async with asyncio.timeout(30):
        last = await first
    assert (last.finish_reason, last.prompt_tokens) == ("abort", 0)


async def test_requests_that_a_lost_engine_refuses_are_told_so_and_do_not_wait() -> None:
    """A supervised engine says so as soon as it is asked, before there is anything to iterate over."""
    scene = Scene()
    fake = scene.engine
    scene.engine = SupervisedEngine(EngineConfig("none", restarts=0), lambda *_: fake)  # type: ignore[assignment]
    await scene.open()
    await fake.die()
    await scene.engine.died()
    stream = scene.one.engine.generate(GenerationRequest("late", [3, 4], SamplingParams(max_tokens=5)))
    async with asyncio.timeout(10):
        with pytest.raises(EngineDead):
            await anext(stream)
    for worker in (scene.one, scene.other):
        worker.link.close()
        await worker.desk.gone.wait()
    await scene.engine.stop()


class BrokenEngine(FakeEngine):
    """One whose code has a fault, of which nobody knows yet; or which is lost."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def generate(self, request: GenerationRequest, read: Any = None) -> AsyncGenerator[TokenDelta]:  # type: ignore[override]
        yield TokenDelta(request.request_id, [7])
        raise self._error

    async def load_adapter(self, *_: object) -> None:
        raise self._error

    async def stats(self) -> Any:
        raise self._error

    async def ready(self) -> bool:
        raise self._error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError("[enforce fail] at /srv/x"), EngineError, "the server's first process; its log has the rest"),
        (CallFailed("vLLM's own words of /srv/x"), EngineError, "the server's first process; its log has the rest"),
        (EngineDead("its process ended"), EngineDead, "its process ended"),
        (EngineRestarting(3), EngineRestarting, "retry in 3 seconds"),
    ],
    ids=["unexpected", "unexpected-of-an-engine", "dead", "restarting"],
)
async def test_whoever_waits_for_an_engine_that_fails_is_told_so(
    caplog: pytest.LogCaptureFixture, error: Exception, kind: type[Exception], words: str
) -> None:
    """A stream, an upload, a probe: nothing else would ever end their waiting."""
    scene = Scene()
    scene.engine = BrokenEngine(error)
    await scene.open()
    engine, expected = scene.one.engine, kind is not EngineError
    stream = engine.generate(GenerationRequest("broken", [3, 4], SamplingParams(max_tokens=5)))
    async with asyncio.timeout(10):
        assert (await anext(stream)).token_ids == [7], "what came before is told"
        with pytest.raises(kind, match=words):
            await anext(stream)
        with pytest.raises(kind if expected else AdapterLoadFailed, match=words if expected else "can't be loaded"):
            await engine.load_adapter(AdapterRef.of("ab" * 32, "/nowhere"))
        for asked in (engine.stats, engine.ready):
            with pytest.raises(kind, match=words):
                await asked()
    told = [record for record in caplog.records if record.exc_info and record.exc_info[1] is error]
    assert len(told) == (0 if expected else 4), "its own words are the log's"
    assert not scene.one.desk.used and not scene.one.desk._requests
    for worker in (scene.one, scene.other):
        worker.link.close()
        await worker.desk.gone.wait()


async def test_a_worker_whose_parent_is_silent_is_not_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """As probes ask it: nothing here could end a parent that hangs, but whoever watches the server can."""
    monkeypatch.setattr(attached, "READY_S", 0.01)
    mine, theirs = socket.socketpair()
    worker = Worker()
    worker.engine = AttachedEngine(worker.link, 0, await FakeEngine().start())
    await worker.link.open(theirs)
    with mine, pytest.raises(EngineDead, match="doesn't answer"):
        await worker.engine.ready()
    worker.link.close()
