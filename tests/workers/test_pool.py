"""Workers that hang, or don't end when they are told to: real processes that hear nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from livery.assembly import gate_for
from livery.engine.fake import FakeEngine
from livery.workers import messages, pool
from livery.workers.hub import Hub
from livery.workers.ledger import Ledger
from livery.workers.pool import Pool, WorkersUnable

LONG_S = 600.0


@pytest.fixture
async def stubborn(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stubborn]:
    made = Stubborn(monkeypatch)
    yield made
    made.pool.kill()
    await made.pool.done()


class Stubborn:
    """A pool of such workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.pool: Pool
        self.told: list[tuple[int, list[bool]]] = []  # which worker was told to begin, and who served by then

    async def open(self, way: str, *, processes: int = 1, hang_s: float = LONG_S, drain_s: float = LONG_S) -> Pool:
        here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        self._monkeypatch.setenv("PYTHONPATH", here)
        self._monkeypatch.setenv("STUBBORN", way)
        self._monkeypatch.setattr(pool, "PROGRAM", "stubborn")
        engine = FakeEngine()
        info = await engine.start()
        hub = Hub(engine, gate_for(info), Ledger("base", info, 10))

        def begin(number: int, connections: int) -> messages.Begin:
            self.told.append((number, [worker.serving for worker in self.pool.house().workers]))
            return messages.Begin(number, {}, "", "", info, 0, None, connections)

        self.pool = Pool(hub, begin, processes, [], hang_s=hang_s, drain_s=drain_s)
        return self.pool

    def pid(self) -> int:
        (worker,) = self.pool.house().workers
        return worker.pid


async def until(stubborn: Stubborn, other_than: int) -> None:
    while stubborn.pid() in (0, other_than):
        await asyncio.sleep(0.02)


async def test_told_to_stop_nobody_waits_for_a_worker_that_starts(stubborn: Stubborn) -> None:
    """It may be in the middle of something that lasts minutes, and has nothing to finish."""
    started = asyncio.create_task((await stubborn.open("mute")).start())
    await until(stubborn, 0)
    stubborn.pool.drain(signal.SIGTERM)
    await stubborn.pool.done()
    await started


async def test_no_worker_begins_before_the_first_has_taken_in_the_adapters(stubborn: Stubborn) -> None:
    await (await stubborn.open("told", processes=2)).start()
    assert stubborn.told == [(0, [False, False]), (1, [True, False])]


async def test_a_worker_that_never_serves_is_a_server_that_does_not_start(
    stubborn: Stubborn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STARTING_S", 0.1)
    with pytest.raises(WorkersUnable, match="API worker 0 ended with SIGKILL before it served"):
        await (await stubborn.open("mute", hang_s=0.1)).start()


async def test_a_worker_that_falls_silent_is_ended_and_started_anew(stubborn: Stubborn) -> None:
    await (await stubborn.open("falls-silent", hang_s=1.0)).start()
    first = stubborn.pid()
    await until(stubborn, first)
    assert stubborn.pool.house().workers[0].restarts == 1


async def test_a_worker_that_does_not_end_is_ended_in_the_end(
    stubborn: Stubborn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "LATE_S", 0.1)
    await (await stubborn.open("serving", drain_s=0.1)).start()
    stubborn.pool.drain(signal.SIGTERM)
    await stubborn.pool.done()
