"""What all workers of a server counted, added up by their parent: nothing is lost with a worker but its last second."""

from __future__ import annotations

from itertools import chain

from livery.activity import Activity, Lately
from livery.engine.base import EngineInfo, EngineStats
from livery.metrics import Metrics
from livery.under_way import Row, UnderWay
from livery.workers import messages as m


class Ledger:
    """Use from one event loop."""

    def __init__(self, base_name: str, info: EngineInfo, max_adapters: int) -> None:
        self._activity = Activity()
        self._metrics = Metrics(base_name, info, max_adapters, activity=self._activity)
        self._running: dict[int, list[Row]] = {}  # by worker
        self._stats: EngineStats | None = None

    def add(self, number: int, grown: m.Grown) -> None:
        """A worker of this number counted so much more."""
        self._metrics.add(grown.growth)
        self._activity.replay(grown.events)
        self._running[number] = grown.running

    def gone(self, number: int) -> None:
        """Nothing of a worker runs any more."""
        self._running.pop(number, None)

    def engine_says(self, stats: EngineStats) -> None:
        """To be counted once the names are known that its versions ran under."""
        self._stats = stats

    def forget(self, adapters: list[str], tenants: list[str]) -> None:
        """These are no more."""
        self._metrics.forget_adapters(adapters)
        self._metrics.forget_tenants(tenants)

    def books(self, call: int) -> m.Books:
        if self._stats is not None:
            self._metrics.count_engine(self._stats)
            self._stats = None
        metrics = self._metrics
        return m.Books(
            call=call, all=metrics.told(), adapters=metrics.adapters.names(), tenants=metrics.tenants.names()
        )

    def lately(self, account: str | None, now: float) -> Lately:
        return self._activity.of(account).told(now, UnderWay.told(self.running()).by_name(account))

    def running(self) -> list[Row]:
        """Requests under way, of each worker one after the other."""
        return list(chain.from_iterable(self._running.values()))
