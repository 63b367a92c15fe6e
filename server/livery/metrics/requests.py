"""What is counted over all requests, under vLLM's names."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric

from livery.activity import Outcome
from livery.engine.figures import Spread
from livery.metrics.outcomes import OUTCOMES
from livery.metrics.plain import Counter, Histogram, Labels

# vLLM's bounds, so that queries and boards written for it work unchanged. Seconds.
LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
BETWEEN_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class SeriesGrowth(msgspec.Struct, frozen=True):
    """What RequestSeries counted, in its own order."""

    histograms: list[Spread]
    counters: list[int]
    success: dict[Outcome, int]


class RequestSeries:
    """Latencies, lengths and counts of every request."""

    def __init__(self) -> None:
        seconds = {
            "time_to_first_token_seconds": ("Time from a request's arrival to its first token", FIRST_TOKEN),
            "inter_token_latency_seconds": ("Time between tokens", BETWEEN_TOKENS),
            "request_time_per_output_token_seconds": ("Mean time per output token", BETWEEN_TOKENS),
            "e2e_request_latency_seconds": ("Time from a request's arrival to its end", LATENCY),
            "request_queue_time_seconds": ("Time from arrival in the engine to the first step", LATENCY),
            "request_prefill_time_seconds": ("Time from the first step to the first token", LATENCY),
            "request_inference_time_seconds": ("Time from the first step to the last token", LATENCY),
            "request_decode_time_seconds": ("Time from the first to the last token of a request", LATENCY),
            "request_prompt_tokens": ("Prompt tokens per request", TOKENS),
            "request_generation_tokens": ("Generated tokens per request", TOKENS),
            "request_max_num_generation_tokens": ("Generated tokens of a request's longest answer", TOKENS),
        }
        made = [Histogram(f"vllm:{name}", text, bounds) for name, (text, bounds) in seconds.items()]
        self.first_token, self.between_tokens, self.per_token, self.latency = made[:4]
        self.queued, self.prefill, self.inference, self.decoding = made[4:8]
        self.prompt_length, self.answer_length, self.longest_answer = made[8:]
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Prompt tokens")
        self.generation_tokens = Counter("vllm:generation_tokens", "Generated tokens")
        self.success: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        self._histograms, self._counters = made, [self.prompt_tokens, self.generation_tokens]

    def told(self) -> SeriesGrowth:
        """All of it."""
        return SeriesGrowth(
            [one.told() for one in self._histograms], [one.value for one in self._counters], dict(self.success)
        )

    def take(self) -> SeriesGrowth:
        """What came since the last time."""
        taken = self.told()
        for histogram in self._histograms:
            histogram.take()
        for counter in self._counters:
            counter.value = 0
        for outcome in self.success:
            self.success[outcome] = 0
        return taken

    def add(self, growth: SeriesGrowth) -> None:
        for histogram, spread in zip(self._histograms, growth.histograms, strict=True):
            histogram.add(spread)
        for counter, value in zip(self._counters, growth.counters, strict=True):
            counter.inc(value)
        for outcome, count in growth.success.items():
            self.success[outcome] += count

    def families(self, labels: Labels) -> Iterator[Metric]:
        for histogram in self._histograms:
            yield histogram.family(labels)
        for counter in self._counters:
            yield counter.family(labels)
        success = CounterMetricFamily(
            "vllm:request_success", "Finished sequences by reason", labels=[*labels, "finished_reason"]
        )
        for reason, count in self.success.items():
            success.add_metric([*labels.values(), reason], count)
        yield success
