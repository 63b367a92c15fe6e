"""All series of one server, and the text of a scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from livery.activity import Activity
from livery.engine.base import EngineInfo
from livery.metrics.adapters import AdapterCounts, adapter_families
from livery.metrics.engine import engine_families
from livery.metrics.meter import Books, RequestMeter
from livery.metrics.plain import Counter
from livery.metrics.requests import RequestSeries
from livery.metrics.snapshot import Snapshot
from livery.metrics.top import Top


class Metrics:
    """All series of one server. Written on its event loop, read on any thread."""

    def __init__(self, base_name: str, info: EngineInfo, max_adapters: int = 200) -> None:
        self.adapters = Top(max_adapters, AdapterCounts)
        self.requests = RequestSeries()
        self.activity = Activity()
        self.unknown_fields = Counter("livery_unknown_fields", "Fields of requests that were unknown")
        self._labels = {"model_name": base_name, "engine": "0"}
        self._info = info
        self._books = Books(self.requests, self.adapters, self.activity)
        self._http: dict[tuple[str, str, str], int] = {}  # (route, method, status) -> responses

    def begin(self, adapter: str | None) -> RequestMeter:
        """Start the clock of one admitted request; `adapter` is its registered name, None for the base."""
        return RequestMeter(self._books, adapter)

    def http(self, route: str, method: str, status: int) -> None:
        answer = route, method, str(status)
        self._http[answer] = self._http.get(answer, 0) + 1

    def render(self, snapshot: Snapshot | None) -> bytes:
        """The text of one scrape; takes milliseconds, so call it off the event loop."""
        if snapshot is not None:
            self.adapters.drop(snapshot.gone)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(self, snapshot))
        return generate_latest(registry)

    def families(self, snapshot: Snapshot | None) -> Iterator[Metric]:
        """All there is to tell; without a snapshot, all that the engine isn't asked for."""
        yield from self.requests.families(self._labels)
        yield self._http_family()
        yield self.unknown_fields.family({})
        yield from adapter_families(self.adapters.snapshot())
        if snapshot is not None:
            yield from engine_families(snapshot, self._info, self._labels)

    def _http_family(self) -> Metric:
        family = CounterMetricFamily("livery_http_requests", "HTTP responses", labels=["route", "method", "status"])
        for answer, count in sorted(self._http.copy().items()):
            family.add_metric(list(answer), count)
        return family


class _Scrape:
    """What `prometheus_client` asks at one scrape."""

    def __init__(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        self._metrics = metrics
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return self._metrics.families(self._snapshot)
