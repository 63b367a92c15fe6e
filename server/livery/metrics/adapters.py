"""What is counted per adapter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from livery.activity import Outcome, Work
from livery.metrics.outcomes import FAILED, KINDS, OUTCOMES
from livery.metrics.top import OTHER

TIERS = ("device", "host", "store")


@dataclass(slots=True)
class AdapterCounts:
    """Running totals of one adapter (or of all the unlabelled ones)."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0  # of the prompts', found in the prefix cache
    requests: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    errors: dict[str, int] = field(default_factory=dict)  # by kind
    last_use: float = 0.0  # Unix time
    loads: int = 0  # into device memory
    load_seconds: float = 0.0
    load_failures: int = 0
    evictions: int = 0
    hits: int = 0  # requests that found it in device memory
    misses: int = 0

    @property
    def work(self) -> int:
        return self.prompt_tokens + self.generation_tokens

    def add(self, other: AdapterCounts) -> None:
        self.prompt_tokens += other.prompt_tokens
        self.generation_tokens += other.generation_tokens
        self.cached_tokens += other.cached_tokens
        for outcome, count in other.requests.items():
            self.requests[outcome] += count
        for kind, count in other.errors.items():
            self.errors[kind] = self.errors.get(kind, 0) + count
        self.last_use = max(self.last_use, other.last_use)
        self.loads += other.loads
        self.load_seconds += other.load_seconds
        self.load_failures += other.load_failures
        self.evictions += other.evictions
        self.hits += other.hits
        self.misses += other.misses

    def ended(self, work: Work) -> None:
        self.prompt_tokens += work.prompt_tokens
        self.generation_tokens += work.generated
        self.cached_tokens += work.cached_tokens
        self.requests[work.outcome] += 1
        if work.outcome == "error":
            kind = work.kind if work.kind in KINDS else FAILED
            self.errors[kind] = self.errors.get(kind, 0) + 1
        self.last_use = time.time()


def adapter_families(rows: list[tuple[str, AdapterCounts]]) -> Iterator[Metric]:
    """Series of these adapters, most of which only grow."""
    requests = CounterMetricFamily(
        "livery_adapter_requests", "Requests by adapter and outcome", labels=["adapter", "outcome"]
    )
    errors = CounterMetricFamily(
        "livery_adapter_errors", "Requests that failed, by adapter and what failed", labels=["adapter", "kind"]
    )
    last = GaugeMetricFamily(
        "livery_adapter_last_use_timestamp_seconds", "When a request of the adapter last ended", labels=["adapter"]
    )
    loading = SummaryMetricFamily(
        "livery_adapter_load_duration_seconds", "Loads into device memory and the time they took", labels=["adapter"]
    )
    for name, counts in rows:
        for outcome, count in counts.requests.items():
            requests.add_metric([name, outcome], count)
        for kind, count in sorted(counts.errors.items()):
            errors.add_metric([name, kind], count)
        if counts.last_use:
            last.add_metric([name], counts.last_use)
        loading.add_metric([name], counts.loads, counts.load_seconds)
    yield from (requests, errors, last, loading)
    for metric, text, values in (
        ("prompt_tokens", "Prompt tokens by adapter", [counts.prompt_tokens for _, counts in rows]),
        ("cached_tokens", "Prompt tokens found in the prefix cache", [counts.cached_tokens for _, counts in rows]),
        ("generation_tokens", "Generated tokens by adapter", [counts.generation_tokens for _, counts in rows]),
        ("load_failures", "Loads that failed", [counts.load_failures for _, counts in rows]),
        ("evicted", "Times the adapter left device memory", [counts.evictions for _, counts in rows]),
        ("hits", "Requests that found the adapter in device memory", [counts.hits for _, counts in rows]),
        ("misses", "Requests that had to wait for the adapter", [counts.misses for _, counts in rows]),
    ):
        family = CounterMetricFamily(f"livery_adapter_{metric}", text, labels=["adapter"])
        for (name, _), value in zip(rows, values, strict=True):
            family.add_metric([name], value)
        yield family


def tier_family(rows: list[tuple[str, AdapterCounts]], tiers: Mapping[str, str]) -> Metric:
    """In which memory each of these adapters is, as one series per tier of which one is 1."""
    family = GaugeMetricFamily(
        "livery_adapter_tier", "1 for the fastest tier that holds the adapter, else 0", labels=["adapter", "tier"]
    )
    for name, _ in rows:
        if name != OTHER:
            for tier in TIERS:
                family.add_metric([name, tier], int(tiers.get(name, "store") == tier))
    return family
