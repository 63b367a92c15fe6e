"""The survey of a worker: it tells the parent what it counts, once a second and when it is asked, and asks it for all.

What is told is counted by the parent from then on; a worker that is killed takes with it what came since it told last.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable

from livery.activity import ActivityLog, Lately
from livery.engine.base import EngineInfo
from livery.metrics import OTHER, Metrics
from livery.metrics.snapshot import Snapshot
from livery.staging import Staged, Staging
from livery.superseding import Superseded
from livery.survey import House
from livery.under_way import UnderWay
from livery.workers import messages as m
from livery.workers.link import Link


class ToldCounting:
    """How a worker counts: everything under its own name, as nothing is shown of it here."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._log = ActivityLog()
        self._elsewhere: list[Staged] = []
        self.made: AskedSurvey | None = None

    def metrics(self, base_name: str, info: EngineInfo) -> Metrics:
        return Metrics(base_name, info, sys.maxsize, sys.maxsize, self._log, told=True)

    def survey(self, metrics: Metrics, under_way: UnderWay) -> AskedSurvey:
        self.made = AskedSurvey(self._link, metrics, self._log, under_way, self._elsewhere)
        return self.made

    def hear(self, elsewhere: list[Staged]) -> None:
        """What is on its way into other workers; also before there is anybody here to know it."""
        self._elsewhere = elsewhere
        if self.made is not None:
            self.made.hear(elsewhere)


class AskedSurvey:
    """Of one server, as a worker is told of it. Use from one event loop."""

    def __init__(
        self, link: Link, metrics: Metrics, log: ActivityLog, under_way: UnderWay, elsewhere: Iterable[Staged] = ()
    ) -> None:
        """`elsewhere` is what is on its way into other workers now."""
        self._link, self._metrics, self._log, self._under_way = link, metrics, log, under_way
        self._elsewhere = elsewhere
        self._staging: Staging | None = None

    def tell(self, asked: int = 0) -> None:
        """Tell the parent what was counted since the last time; `asked` is the number of its question."""
        self._link.send(m.Grown(asked, self._metrics.take(), self._log.take(), self._under_way.each()))

    def count(self) -> None:
        self.tell()

    async def books(self) -> Metrics:
        self.tell()
        told: m.Books = await self._link.ask(m.AskBooks)
        # Room for the names that show; of the others it is only known that they are there.
        adapters = sum(name != OTHER for name, _ in told.all.adapters)
        tenants = sum(name != OTHER for name, _ in told.all.tenants)
        books = Metrics(self._metrics.base_name, self._metrics.info, adapters, tenants)
        books.add(told.all)
        books.adapters.know(told.adapters)
        books.tenants.know(told.tenants)
        return books

    async def settle(self, books: Metrics, snapshot: Snapshot) -> None:
        """What the engine says is counted by the parent, which is told it as well."""
        adapters = snapshot.adapters.gone if snapshot.adapters is not None else ()
        books.forget_adapters(adapters)
        books.forget_tenants(snapshot.gone_tenants)
        if adapters or snapshot.gone_tenants:
            self._link.send(m.Forget(list(adapters), list(snapshot.gone_tenants)))

    async def lately(self, account: str | None) -> Lately:
        self.tell()
        told: m.Doings = await self._link.ask(lambda call: m.AskLately(call, account))
        return told.lately

    async def under_way(self) -> UnderWay:
        self.tell()
        told: m.Running = await self._link.ask(m.AskRunning)
        return UnderWay.told(told.rows)

    async def house(self) -> House:
        told: m.Told = await self._link.ask(m.AskHouse)
        return told.house

    async def spread(
        self, names: Collection[str] = (), *, keys: bool = False, superseded: Superseded | None = None
    ) -> None:
        await self._link.ask(lambda call: m.Spread(call, list(names), keys, superseded))

    def share(self, staging: Staging) -> None:
        staging.tell = lambda names: self._link.send(m.TakesIn(names))
        staging.hear(self._elsewhere)
        self._staging = staging

    def hear(self, elsewhere: Iterable[Staged]) -> None:
        self._elsewhere = elsewhere
        if self._staging is not None:
            self._staging.hear(elsewhere)

    def forget_tenants(self, names: Collection[str]) -> None:
        self.tell()  # what came before is the old one's
        self._link.send(m.Forget([], list(names)))
