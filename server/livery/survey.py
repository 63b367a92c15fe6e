"""What is known of a whole server, whichever of its processes is asked.

Where there is one process, that is what it counted itself. Where there are several, each asks the one that adds up what
all of them count (livery.workers.survey).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from livery.activity import Activity, Lately
from livery.engine.base import EngineInfo
from livery.metrics import Metrics
from livery.metrics.snapshot import Snapshot
from livery.staging import Staging
from livery.superseding import Superseded
from livery.under_way import UnderWay


class Process(msgspec.Struct, frozen=True):
    """One that serves HTTP. `restarts`: how often its predecessors ended by themselves."""

    number: int
    pid: int
    serving: bool
    restarts: int


class House(msgspec.Struct, frozen=True):
    """A server's processes since `began` (time.perf_counter); `pids` are those of all but the engine, and `cpu_s` what
    they and their predecessors ran. `engine_answered` is when the engine last answered any of them (time.monotonic),
    and `engine_restarts` what it said last. None of it where there is one process only.
    """

    began: float = 0.0
    pids: tuple[int, ...] = ()
    workers: tuple[Process, ...] = ()
    cpu_s: float | None = None
    engine_answered: float | None = None
    engine_restarts: int | None = None


class Survey(Protocol):
    """Of one server. Use from one event loop."""

    async def books(self) -> Metrics:
        """All that was counted until now, to be read."""
        ...

    async def settle(self, books: Metrics, snapshot: Snapshot) -> None:
        """Count in these books, and where they are kept, what a snapshot says."""
        ...

    async def lately(self, account: str | None) -> Lately:
        """What a tenant's requests did lately, or (None) those of all."""
        ...

    async def under_way(self) -> UnderWay:
        """Requests under way on the server's adapters."""
        ...

    async def house(self) -> House:
        """The server's processes."""
        ...

    def count(self) -> None:
        """Count what came to open requests since the last time."""
        ...

    async def spread(
        self, names: Collection[str] = (), *, keys: bool = False, superseded: Superseded | None = None
    ) -> None:
        """Adapters of these names were changed here, or who may come in, or requests are to end: have the server's
        other processes know it.
        """
        ...

    def share(self, staging: Staging) -> None:
        """Have the server's other processes know what is on its way in here from now on, and this what is there."""
        ...

    def forget_tenants(self, names: Collection[str]) -> None:
        """These are deleted: their series end, and another one of that name begins its own."""
        ...


class OwnSurvey:
    """Of a server that is one process."""

    def __init__(self, metrics: Metrics, under_way: UnderWay) -> None:
        self._metrics, self._under_way = metrics, under_way

    async def books(self) -> Metrics:
        self._metrics.catch_up()
        return self._metrics

    async def settle(self, books: Metrics, snapshot: Snapshot) -> None:
        await asyncio.to_thread(books.settle, snapshot)

    async def lately(self, account: str | None) -> Lately:
        self._metrics.catch_up()
        assert isinstance(self._metrics.activity, Activity)
        doings = self._metrics.activity.of(account)
        return doings.told(time.perf_counter(), self._under_way.by_name(account))

    async def under_way(self) -> UnderWay:
        return self._under_way

    async def house(self) -> House:
        return House()

    def count(self) -> None:
        self._metrics.catch_up()

    async def spread(
        self, names: Collection[str] = (), *, keys: bool = False, superseded: Superseded | None = None
    ) -> None:
        """There are none."""

    def share(self, staging: Staging) -> None:
        """With none."""

    def forget_tenants(self, names: Collection[str]) -> None:
        self._metrics.forget_tenants(names)


class Counting(Protocol):
    """How a process counts, and who tells it what all of its server counted."""

    def metrics(self, base_name: str, info: EngineInfo) -> Metrics:
        """Where this process's requests are counted."""
        ...

    @property
    def survey(self) -> Callable[[Metrics, UnderWay], Survey]:
        """What tells of the whole server, made of this process's part of it."""
        ...


class OwnCounting:
    """Of a server that is one process: series of its own for so many adapters."""

    survey = OwnSurvey

    def __init__(self, max_adapters: int = 200) -> None:
        self._max_adapters = max_adapters

    def metrics(self, base_name: str, info: EngineInfo) -> Metrics:
        return Metrics(base_name, info, self._max_adapters)
