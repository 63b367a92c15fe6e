"""Two workers and their parent over real pairs of sockets in one process, without HTTP."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from livery.engine.fake import Behaviour, FakeEngine
from livery.staging import Staging
from livery.tenancy import RateLimiter, Room
from livery.tenancy.gate import Gate
from livery.under_way import UnderWay
from livery.workers import messages
from livery.workers.attached import AttachedEngine
from livery.workers.gatekeeper import AskedGate
from livery.workers.hub import Desk, Hub
from livery.workers.ledger import Ledger
from livery.workers.link import Link
from livery.workers.survey import AskedSurvey, ToldCounting


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """A worker's end of everything, without HTTP."""

    def __init__(self) -> None:
        self.link = Link(messages.ToWorker, self._take, lambda: None)
        self.gate = AskedGate(self.link)
        self.under_way = UnderWay()
        self.renewed: list[messages.Renew] = []
        self.settled: list[str] = []
        self.staging = Staging(self.settled.extend)
        self.engine: AttachedEngine
        self.survey: AskedSurvey
        self.desk: Desk

    async def attach(self, hub: Hub, number: int) -> Worker:
        mine, theirs = socket.socketpair()
        info = await hub.engine.start()
        self.engine = AttachedEngine(self.link, number, info)
        self.counting = counting = ToldCounting(self.link)
        self.survey = counting.survey(counting.metrics("base", info), self.under_way)
        self.survey.share(self.staging)
        self.desk = hub.desk(number)
        await self.desk.link.open(mine)
        await self.link.open(theirs)
        self.link.send(messages.Serving())
        await self.desk.serving.wait()
        return self

    def _take(self, message: Any) -> None:
        match message:
            case messages.Used():
                self.gate.take(message)
            case messages.Deltas() | messages.Failed():
                self.engine.take(message)
            case messages.Tell(number):
                self.survey.tell(number)
            case messages.Renew():
                self.renewed.append(message)
                self.link.send(messages.Renewed(message.number))
            case messages.Incoming(names):
                self.counting.hear(names)


class Scene:
    """A hub with two workers, three places, and a clock of the test's own."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.engine = FakeEngine(Behaviour(stepped=True))
        self.gate = Gate(Room(3, 1000, self.clock), RateLimiter(self.clock))

    async def open(self) -> None:
        hub = Hub(self.engine, self.gate, Ledger("base", await self.engine.start(), 10))
        self.one, self.other = [await Worker().attach(hub, number) for number in (0, 1)]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.open()
    yield scene
    for worker in (scene.one, scene.other):
        worker.link.close()
        await worker.desk.gone.wait()
