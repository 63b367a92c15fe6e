"""What is counted per tenant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from livery.activity import Outcome, Work
from livery.engine.figures import TenantStanding
from livery.metrics.outcomes import OUTCOMES
from livery.metrics.top import OTHER

MAX_TENANTS = 100  # with series of their own; the rest add up
Throttle = Literal["limit", "room"]  # a limit of its own (429), or its share of a full room (503)


@dataclass(slots=True)
class TenantCounts:
    """Running totals of one tenant (or of all the unlabelled ones)."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    requests: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    throttled: dict[Throttle, int] = field(default_factory=lambda: {"limit": 0, "room": 0})

    @property
    def work(self) -> int:
        return self.prompt_tokens + self.generation_tokens

    def add(self, other: TenantCounts) -> None:
        self.prompt_tokens += other.prompt_tokens
        self.generation_tokens += other.generation_tokens
        for outcome, count in other.requests.items():
            self.requests[outcome] += count
        for reason, count in other.throttled.items():
            self.throttled[reason] += count

    def ended(self, work: Work) -> None:
        self.prompt_tokens += work.prompt_tokens
        self.generation_tokens += work.generated
        self.requests[work.outcome] += 1


def tenant_families(rows: list[tuple[str, TenantCounts]]) -> Iterator[Metric]:
    """What only grows."""
    requests = CounterMetricFamily(
        "livery_tenant_requests", "Requests by tenant and outcome", labels=["tenant", "outcome"]
    )
    throttled = CounterMetricFamily(
        "livery_tenant_throttled",
        "Requests told to come later: over a limit of the tenant's (429), or for want of room (503)",
        labels=["tenant", "reason"],
    )
    prompt = CounterMetricFamily("livery_tenant_prompt_tokens", "Prompt tokens by tenant", labels=["tenant"])
    generation = CounterMetricFamily("livery_tenant_generation_tokens", "Generated tokens by tenant", labels=["tenant"])
    for name, counts in rows:
        for outcome, count in counts.requests.items():
            requests.add_metric([name, outcome], count)
        for reason, count in counts.throttled.items():
            throttled.add_metric([name, reason], count)
        prompt.add_metric([name], counts.prompt_tokens)
        generation.add_metric([name], counts.generation_tokens)
    yield from (requests, throttled, prompt, generation)


def held_families(shown: Iterable[str], open_sequences: Mapping[str, int], queued: Mapping[str, int]) -> list[Metric]:
    """What tenants hold of the waiting room."""
    shown = frozenset(shown)
    return [
        _by_tenant("open_sequences", "Sequences under way or waiting", shown, open_sequences, sum),
        _by_tenant("queued_tokens", "Prompt tokens of answers that haven't begun", shown, queued, sum),
    ]


def standing_families(shown: Iterable[str], standings: Iterable[TenantStanding]) -> list[Metric]:
    """How tenants do in the engine; `_other` has the sum, and the largest lag."""
    told, shown = list(standings), frozenset(shown)
    lag = "Virtual tokens that the tenant is ahead of the one served least: the higher, the later its turn"
    return [
        _by_tenant("waiting", "Sequences waiting in the engine", shown, {one.tenant: one.waiting for one in told}, sum),
        _by_tenant("running", "Sequences being computed", shown, {one.tenant: one.running for one in told}, sum),
        _by_tenant("fairness_lag_tokens", lag, shown, {one.tenant: one.lag for one in told}, max),
    ]


def _by_tenant(
    name: str,
    text: str,
    shown: frozenset[str],
    values: Mapping[str, float],
    together: Callable[[list[float]], float],
) -> Metric:
    family = GaugeMetricFamily(f"livery_tenant_{name}", text, labels=["tenant"])
    for tenant in sorted(shown - {OTHER}):
        family.add_metric([tenant], values.get(tenant, 0))
    if others := [value for tenant, value in values.items() if tenant not in shown]:
        family.add_metric([OTHER], together(others))
    return family
