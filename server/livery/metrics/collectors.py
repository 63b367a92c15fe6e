"""All series of one server, and the text of a scrape."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from livery.activity import Activity, ActivityLog
from livery.engine.base import EngineInfo, EngineStats
from livery.metrics.adapters import AdapterCounts, adapter_families, tier_family
from livery.metrics.engine import engine_families
from livery.metrics.growth import Growth
from livery.metrics.meter import Books, RequestMeter, Used
from livery.metrics.plain import Counter
from livery.metrics.processes import Processes
from livery.metrics.requests import RequestSeries
from livery.metrics.residents import Residents
from livery.metrics.server import ServerState, server_families
from livery.metrics.snapshot import Snapshot
from livery.metrics.tenants import (
    MAX_TENANTS,
    TenantCounts,
    Throttle,
    held_families,
    standing_families,
    tenant_families,
)
from livery.metrics.top import OTHER, Top
from livery_adapters.names import OPERATOR_TENANT


class Metrics:
    """All series of one server. Written on its event loop, read on any thread."""

    def __init__(
        self,
        base_name: str,
        info: EngineInfo,
        max_adapters: int = 200,
        max_tenants: int = MAX_TENANTS,
        activity: Activity | ActivityLog | None = None,
        *,
        told: bool = False,
    ) -> None:
        """`activity` is where it is written what requests did lately. `told`: what is counted here is told to another
        process, by `take`, and nothing of it shows here.
        """
        self.adapters = Top(max_adapters, AdapterCounts)
        self.tenants = Top(max_tenants, TenantCounts)
        self.requests = RequestSeries()
        self.activity = Activity() if activity is None else activity
        self.unknown_fields = Counter("livery_unknown_fields", "Fields of requests that were unknown")
        self._labels = {"model_name": base_name, "engine": "0"}
        self.base_name, self.info = base_name, info
        self._books = Books(self.requests, self.adapters, self.tenants, self.activity)
        self._residents = Residents(self.adapters)
        self._told = told
        self._asked: dict[str, str] = {}  # where it is told: digest -> adapter, of requests since the last `take`
        self._http: dict[tuple[str, str, str], int] = {}  # (route, method, status) -> responses

    def begin(
        self,
        used: Used,
        adapter: str | None = None,
        digest: str | None = None,
        tenant: str = OPERATOR_TENANT,
        encoding: float | None = None,
        account: str = "",
        since: float | None = None,
    ) -> RequestMeter:
        """Start the clock of one admitted request, whose tokens grow in `used`.

        `adapter` is its registered name, None for the base, OTHER for what has none; `digest` what the engine knows its
        version by. `encoding`: when its prompts began to be encoded, by time.perf_counter. `account` is the tenant's,
        "": its name. `since`: when it came, by the same clock; None: now.
        """
        if adapter is not None and adapter != OTHER and digest is not None:
            if self._told:
                self._asked[digest] = adapter
            else:
                self._residents.asked(adapter, digest)
        return RequestMeter(self._books, used, adapter, tenant, account or tenant, encoding, since)

    def catch_up(self) -> None:
        """Count what came to open requests since the last time."""
        for meter in self._books.open:
            meter.catch_up()

    def throttled(self, tenant: str, reason: Throttle) -> None:
        """A request of a tenant was told to come later."""
        counts = TenantCounts()
        counts.throttled[reason] = 1
        self.tenants.record(tenant, counts)

    def forget_tenants(self, names: Collection[str]) -> None:
        """These are deleted: their series end, and another one of that name begins its own."""
        self.tenants.drop(names)

    def in_memory(self, stats: EngineStats) -> frozenset[str]:
        """The adapters whose newest versions are in the device's memory or the host's, by their names in full."""
        return frozenset(self._residents.tiers(stats))

    def http(self, route: str, method: str, status: int) -> None:
        answer = route, method, str(status)
        self._http[answer] = self._http.get(answer, 0) + 1

    # -- one server's books, kept by several processes -------------------------------------------------

    def take(self) -> Growth:
        """What was counted since the last time, which is counted here no more."""
        self.catch_up()
        asked, self._asked = self._asked, {}
        http, self._http = self._http, {}
        unknown, self.unknown_fields.value = self.unknown_fields.value, 0
        return Growth(
            self.requests.take(), self.adapters.take(), self.tenants.take(), _listed(http), unknown, list(asked.items())
        )

    def told(self) -> Growth:
        """All that shows."""
        adapters = self.adapters.snapshot()
        newest = [(digest, name) for name, digest in self._residents.newest(name for name, _ in adapters)]
        unknown = self.unknown_fields.value
        return Growth(
            self.requests.told(), adapters, self.tenants.snapshot(), _listed(self._http.copy()), unknown, newest
        )

    def add(self, growth: Growth) -> None:
        """Count what another process did."""
        self.requests.add(growth.requests)
        for digest, adapter in growth.asked:
            self._residents.asked(adapter, digest)
        for name, counts in growth.adapters:
            self.adapters.record(name, counts)
        for name, tenant in growth.tenants:
            self.tenants.record(name, tenant)
        for route, method, status, count in growth.http:
            self._http[route, method, status] = self._http.get((route, method, status), 0) + count
        self.unknown_fields.inc(growth.unknown_fields)

    def settle(self, snapshot: Snapshot) -> None:
        """Forget who is gone, and count what the engine says of versions."""
        if snapshot.adapters is not None:
            self.forget_adapters(snapshot.adapters.gone)
        self.forget_tenants(snapshot.gone_tenants)
        self.count_engine(snapshot.stats)

    def forget_adapters(self, names: Collection[str]) -> None:
        """These are no longer served: their series end."""
        self.adapters.drop(names)
        self._residents.drop(names)

    def count_engine(self, stats: EngineStats) -> None:
        """Count what became of versions by the names whose requests ran on them."""
        self._residents.count(stats)

    # -- telling ---------------------------------------------------------------------------------------

    def render(self, snapshot: Snapshot | None, state: ServerState | None = None) -> bytes:
        """Settle, and the text of one scrape; takes milliseconds, so call it off the event loop."""
        if snapshot is not None:
            self.settle(snapshot)
        return self.text(snapshot, state or ServerState())

    def text(self, snapshot: Snapshot | None, state: ServerState) -> bytes:
        """The text of one scrape of what is settled."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(self, snapshot, state))
        registry.register(Processes(state.processes, state.cpu_s))  # under the names that every dashboard knows
        if snapshot is not None and (pid := snapshot.stats.pid):
            ProcessCollector(namespace="livery_engine", pid=lambda: pid, registry=registry)
        return generate_latest(registry)

    def families(self, snapshot: Snapshot | None, state: ServerState) -> Iterator[Metric]:
        """All there is to tell; without a snapshot, all that the engine isn't asked for."""
        yield from server_families(state, self.base_name, self.info)
        yield from self.requests.families(self._labels)
        yield self._http_family()
        yield self.unknown_fields.family({})
        adapters, tenants = self.adapters.snapshot(), self.tenants.snapshot()
        shown = [name for name, _ in tenants]
        yield from adapter_families(adapters)
        yield from tenant_families(tenants)
        yield from held_families(shown, state.open_by_tenant, state.queued_by_tenant)
        if snapshot is not None:
            yield tier_family(adapters, self._residents.tiers(snapshot.stats))
            yield from standing_families(shown, snapshot.stats.figures.tenants)
            yield from engine_families(snapshot, self.info, self._labels)

    def _http_family(self) -> Metric:
        family = CounterMetricFamily("livery_http_requests", "HTTP responses", labels=["route", "method", "status"])
        for answer, count in sorted(self._http.copy().items()):
            family.add_metric(list(answer), count)
        return family


def _listed(http: Mapping[tuple[str, str, str], int]) -> list[tuple[str, str, str, int]]:
    return [(*answer, count) for answer, count in http.items()]


class _Scrape:
    """What `prometheus_client` asks at one scrape."""

    def __init__(self, metrics: Metrics, snapshot: Snapshot | None, state: ServerState) -> None:
        self._metrics = metrics
        self._told = snapshot, state

    def collect(self) -> Iterator[Metric]:
        return self._metrics.families(*self._told)
