"""What is counted per adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, Metric

from livery.metrics.outcomes import OUTCOMES, Outcome


@dataclass(slots=True)
class AdapterCounts:
    """Running totals of one adapter (or of all the unlabelled ones)."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    requests: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))

    @property
    def work(self) -> int:
        return self.prompt_tokens + self.generation_tokens

    def add(self, other: AdapterCounts) -> None:
        self.prompt_tokens += other.prompt_tokens
        self.generation_tokens += other.generation_tokens
        for outcome, count in other.requests.items():
            self.requests[outcome] += count


def adapter_families(rows: list[tuple[str, AdapterCounts]]) -> Iterator[Metric]:
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
