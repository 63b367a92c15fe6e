"""What the server counts and how it shows: Prometheus text under the names routers and dashboards read.

Whole-server series carry vLLM's names and labels; series per adapter are our own, counters only, and bounded
to the busiest adapters. Knows no HTTP and no engine object: the engine's numbers come in as a snapshot.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from livery.engine.base import EngineInfo, EngineStats

Outcome = Literal["stop", "length", "abort", "error"]
OUTCOMES: tuple[Outcome, ...] = ("stop", "length", "abort", "error")
OTHER = "_other"

# vLLM's bounds, so that queries and boards written for it work unchanged. Seconds.
LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
BETWEEN_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


@dataclass(slots=True)
class AdapterCounts:
    """Running totals of one adapter (or of all the unlabelled ones)."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    requests: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))

    def add(self, other: AdapterCounts) -> None:
        self.prompt_tokens += other.prompt_tokens
        self.generation_tokens += other.generation_tokens
        for outcome, count in other.requests.items():
            self.requests[outcome] += count


class AdapterTotals:
    """Counts per adapter with at most `limit` names shown, the rest under `_other`.

    Every series grows by new work and by nothing else, so that its rate is true: an adapter that loses its label
    takes its past with it and adds to `_other` from then on; one that gains a label starts there from zero.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._work: dict[str, int] = {}  # tokens ever, to rank by
        self._shown: dict[str, AdapterCounts] = {}
        self._other = AdapterCounts()
        self._lock = threading.Lock()

    def record(self, adapter: str, counts: AdapterCounts) -> None:
        with self._lock:
            self._work[adapter] = self._work.get(adapter, 0) + counts.prompt_tokens + counts.generation_tokens
            if adapter not in self._shown and len(self._shown) < self._limit:
                self._shown[adapter] = AdapterCounts()
            self._shown.get(adapter, self._other).add(counts)

    def names(self) -> list[str]:
        """Every adapter with counts."""
        with self._lock:
            return list(self._work)

    def drop(self, adapters: Collection[str]) -> None:
        """These are no longer served: their series end."""
        with self._lock:
            for name in adapters:
                self._work.pop(name, None)
                self._shown.pop(name, None)

    def snapshot(self) -> list[tuple[str, AdapterCounts]]:
        """Copies of what is shown now, by name, `_other` last where it has counts."""
        with self._lock:
            busiest = sorted(self._work, key=lambda name: (-self._work[name], name))[: self._limit]
            for name in set(self._shown) - set(busiest):
                del self._shown[name]
            for name in busiest:
                self._shown.setdefault(name, AdapterCounts())
            rows = sorted(self._shown.items())
            if any(self._other.requests.values()):
                rows.append((OTHER, self._other))
            return [(name, _copy(counts)) for name, counts in rows]


def _copy(counts: AdapterCounts) -> AdapterCounts:
    fresh = AdapterCounts()
    fresh.add(counts)
    return fresh


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the engine and the registry say at the moment of a scrape."""

    stats: EngineStats
    served: int | None = None  # adapters that take requests; None: the registry didn't answer, and no name is known
    gone: tuple[str, ...] = ()  # adapters with counts that no longer do
    resident: tuple[str, ...] = ()  # adapter names in device memory
    waiting: tuple[str, ...] = ()  # adapter names that waiting requests need and that are not resident


class Metrics:
    """All collectors of one server, in a registry of its own."""

    def __init__(self, base_name: str, info: EngineInfo, max_adapters: int = 200) -> None:
        self.adapters = AdapterTotals(max_adapters)
        self._labels = {"model_name": base_name, "engine": "0"}
        self._info = info
        self._snapshot: Snapshot | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self.first_token = self._histogram("time_to_first_token_seconds", "Time to first token", FIRST_TOKEN)
        self.between_tokens = self._histogram("inter_token_latency_seconds", "Time between tokens", BETWEEN_TOKENS)
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per output token", BETWEEN_TOKENS
        )
        self.latency = self._histogram("e2e_request_latency_seconds", "Time from admission to end", LATENCY)
        self.decoding = self._histogram(
            "request_decode_time_seconds", "Time from the first to the last token of a request", LATENCY
        )
        self.prompt_length = self._histogram("request_prompt_tokens", "Prompt tokens per request", TOKENS)
        self.answer_length = self._histogram("request_generation_tokens", "Generated tokens per request", TOKENS)
        self.longest_answer = self._histogram(
            "request_max_num_generation_tokens", "Generated tokens of a request's longest answer", TOKENS
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens")
        success = Counter(
            "vllm:request_success",
            "Finished sequences by reason",
            [*self._labels, "finished_reason"],
            registry=self._registry,
        )
        self.success = {reason: success.labels(**self._labels, finished_reason=reason) for reason in OUTCOMES}
        self._http = Counter(
            "livery_http_requests",
            "HTTP responses",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self.unknown_fields = Counter(
            "livery_unknown_fields", "Fields of requests that were unknown", registry=self._registry
        )
        self._registry.register(_ScrapeCollector(self))

    def begin(self, adapter: str | None) -> RequestMeter:
        """Start the clock of one admitted request; `adapter` is its registered name, None for the base."""
        return RequestMeter(self, adapter)

    def http(self, route: str, method: str, status: int) -> None:
        self._http.labels(route, method, str(status)).inc()

    def render(self, snapshot: Snapshot | None) -> bytes:
        """The text of one scrape; takes milliseconds, so call it off the event loop."""
        self._snapshot = snapshot
        if snapshot is not None:
            self.adapters.drop(snapshot.gone)
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What is computed at the scrape: the engine's snapshot and the series per adapter."""
        yield from _adapter_families(self.adapters.snapshot())
        if self._snapshot is not None:
            yield from _engine_families(self._snapshot, self._info, self._labels)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        family = Histogram(f"vllm:{name}", text, list(self._labels), buckets=tuple(buckets), registry=self._registry)
        return family.labels(**self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, list(self._labels), registry=self._registry).labels(**self._labels)


class RequestMeter:
    """The clock and counts of one request; `close` writes what was not yet written."""

    def __init__(self, metrics: Metrics, adapter: str | None) -> None:
        self._metrics = metrics
        self._adapter = adapter
        self._started = time.perf_counter()
        self._last: dict[int, float] = {}  # sequence -> time of its newest token
        self.first_token_s: float | None = None
        self.outcome: Outcome | None = None
        self._finish_reason: Outcome = "stop"
        self._longest = 0  # tokens

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def tokens(self, sequence: int, count: int) -> None:
        """So many new tokens of a sequence have come."""
        if not count:
            return
        now = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now - self._started
            self._metrics.first_token.observe(self.first_token_s)
        if (last := self._last.get(sequence)) is not None:
            self._metrics.between_tokens.observe((now - last) / count)
        self._last[sequence] = now
        self._metrics.generation_tokens.inc(count)

    def sequence_finished(self, reason: Literal["stop", "length"], tokens: int) -> None:
        self._metrics.success[reason].inc()
        self._metrics.answer_length.observe(tokens)
        self._finish_reason = reason
        self._longest = max(self._longest, tokens)
        if tokens > 1 and self.first_token_s is not None:
            self._metrics.per_token.observe((self.elapsed_s - self.first_token_s) / (tokens - 1))

    def finished(self) -> None:
        """All sequences reached their end."""
        self.outcome = self._finish_reason
        self._metrics.longest_answer.observe(self._longest)
        if self.first_token_s is not None:
            last = max(self._last.values())
            self._metrics.decoding.observe(last - self._started - self.first_token_s)

    def pooled(self, sequences: int) -> None:
        """All vectors of a request came; there is no token to count."""
        self.outcome = "stop"
        self._metrics.success["stop"].inc(sequences)

    def close(self, prompt_tokens: int, generated: int, unfinished: Literal["abort", "error"]) -> None:
        """The request is over; `unfinished` says why if its sequences didn't all reach their end."""
        metrics = self._metrics
        if self.outcome is None:
            self.outcome = unfinished
            metrics.success[unfinished].inc()
        metrics.latency.observe(self.elapsed_s)
        metrics.prompt_length.observe(prompt_tokens)
        metrics.prompt_tokens.inc(prompt_tokens)
        if self._adapter is not None:
            counts = AdapterCounts(prompt_tokens, generated)
            counts.requests[self.outcome] = 1
            metrics.adapters.record(self._adapter, counts)


class _ScrapeCollector:
    """What `prometheus_client` asks at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()


def _adapter_families(rows: list[tuple[str, AdapterCounts]]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "livery_adapter_requests", "Requests by adapter and outcome", labels=["adapter", "outcome"]
    )
    prompt = CounterMetricFamily("livery_adapter_prompt_tokens", "Prompt tokens by adapter", labels=["adapter"])
    generation = CounterMetricFamily(
        "livery_adapter_generation_tokens", "Generated tokens by adapter", labels=["adapter"]
    )
    for name, counts in rows:
        for outcome, count in counts.requests.items():
            requests.add_metric([name, outcome], count)
        prompt.add_metric([name], counts.prompt_tokens)
        generation.add_metric([name], counts.generation_tokens)
    yield from (requests, prompt, generation)


def _engine_families(snapshot: Snapshot, info: EngineInfo, labels: dict[str, str]) -> Iterator[Metric]:
    stats = snapshot.stats
    used = (stats.blocks_total - stats.blocks_free) / stats.blocks_total if stats.blocks_total else 0.0
    for name, text, value in (
        ("vllm:num_requests_running", "Sequences being computed", stats.running),
        ("vllm:num_requests_waiting", "Sequences waiting for their first step", stats.waiting),
        ("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", used),
    ):
        yield _gauge(name, text, labels, value)
    for name, text, value in (
        ("vllm:num_preemptions", "Preemptions", stats.preemptions),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prefix_queries),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_hits),
        ("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead and checked", stats.drafted_tokens),
        ("vllm:spec_decode_num_accepted_tokens", "Tokens guessed ahead that were right", stats.accepted_tokens),
    ):
        yield _counter(name, text, labels, value)
    cache = {
        **labels,
        "block_size": str(info.block_size),
        "num_gpu_blocks": str(info.num_blocks),
        "enable_prefix_caching": str(info.prefix_cache),
    }
    yield _gauge("livery_prefix_cache_blocks", "KV blocks that can be found by content", {}, stats.blocks_cached)
    yield _gauge("vllm:cache_config_info", "How the KV cache is cut", cache, 1)
    if snapshot.served is not None:
        # One sample, always: routers take the newest, and every label combination would stay for ever.
        adapters = {
            "max_lora": str(info.max_running),
            "running_lora_adapters": ",".join(snapshot.resident),
            "waiting_lora_adapters": ",".join(snapshot.waiting),
        }
        yield _gauge("vllm:lora_requests_info", "Adapters in device memory and waiting", adapters, time.time())
        yield _gauge("livery_adapters_registered", "Adapters served by name", {}, snapshot.served)
    yield _gauge("livery_adapter_memory_bytes", "Adapter bytes in device memory", {}, stats.adapter_bytes)
    yield _gauge("livery_adapter_memory_limit_bytes", "Adapter bytes allowed", {}, info.adapter_memory_bytes)
    yield _gauge("livery_host_adapter_memory_bytes", "Adapter bytes in host memory", {}, stats.host_adapter_bytes)
    limit = info.host_adapter_memory_bytes
    yield _gauge("livery_host_adapter_memory_limit_bytes", "Adapter bytes allowed in host memory", {}, limit)
    yield _gauge("livery_host_adapters", "Adapters in host memory", {}, stats.host_adapters)
    from_host = ("livery_adapter_loads_from_host", "Loads whose weights were in host memory")
    for name, text, value in (
        ("livery_adapter_loads", "Adapters brought into device memory", stats.adapter_loads),
        (*from_host, stats.adapter_loads_from_host),
        ("livery_adapter_evictions", "Adapters moved out of device memory", stats.adapter_evictions),
        ("livery_engine_restarts", "Losses of the engine's process that it came back from", stats.restarts),
        ("livery_prefix_cache_evictions", "Cached KV blocks given to other tokens", stats.prefix_evictions),
    ):
        yield _counter(name, text, {}, value)


def _counter(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
