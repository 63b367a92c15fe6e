"""What is counted of tokens while they come: all of them at a scrape, each in its second, and the time between them."""

from __future__ import annotations

import pytest

from livery.activity import WINDOW_S, Throughput
from livery.generation import Usage
from livery.metrics import OTHER, Metrics
from livery.metrics import meter as meter_module
from service.test_metrics import INFO, samples


class Clock:
    """Moments that a test chooses."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module, "perf_counter", clock)
    return clock


def test_tokens_are_counted_while_they_come_and_once(clock: Clock) -> None:
    metrics, used = Metrics("base", INFO), Usage(7)
    meter = metrics.begin(used, "pirate", "d1")
    sequence = meter.sequence()
    for count, at in ((1, 101.0), (1, 101.5), (2, 102.5)):
        clock.now = at
        used.completion_tokens += count
        sequence.tokens(count)
    for _ in range(2):
        metrics.catch_up()
        found = samples(metrics, None)
        assert found["vllm:generation_tokens_total", "0", "base"] == 4
        assert found["vllm:inter_token_latency_seconds_sum", "0", "base"] == 1.5
    assert found["vllm:time_to_first_token_seconds_sum", "0", "base"] == 1.0
    assert found["vllm:inter_token_latency_seconds_count", "0", "base"] == 3  # two came together, half a second each
    assert found["vllm:inter_token_latency_seconds_bucket", "0", "0.5", "base"] == 3
    assert found["vllm:inter_token_latency_seconds_bucket", "0", "0.4", "base"] == 0
    clock.now = 103.0
    sequence.finished("stop", 4)
    meter.finished()
    meter.close("abort")
    found = samples(metrics, None)
    assert found["vllm:generation_tokens_total", "0", "base"] == 4
    assert found["vllm:request_decode_time_seconds_sum", "0", "base"] == 1.5
    assert found["vllm:request_time_per_output_token_seconds_sum", "0", "base"] == 0.5
    assert found["livery_adapter_generation_tokens_total", "pirate"] == 4


def test_a_clients_wait_begins_when_its_request_comes(clock: Clock) -> None:
    metrics, used = Metrics("base", INFO), Usage(7, 0, 2)
    meter = metrics.begin(used, "pirate", "d1", encoding=98.0, since=70.0)
    sequence = meter.sequence()
    for clock.now in (101.0, 103.0):
        sequence.tokens(1)
    sequence.finished("stop", 2)
    meter.finished()
    clock.now = 104.0
    meter.close("abort")
    found = samples(metrics, None)
    assert found["vllm:time_to_first_token_seconds_sum", "0", "base"] == 31
    assert found["vllm:e2e_request_latency_seconds_sum", "0", "base"] == 34
    assert found["vllm:request_decode_time_seconds_sum", "0", "base"] == 2


def test_an_open_request_is_forgotten_with_its_end(clock: Clock) -> None:
    metrics, used = Metrics("base", INFO), Usage(7)
    meter = metrics.begin(used)
    meter.sequence().tokens(1)
    used.completion_tokens = 1
    meter.close("abort")
    used.completion_tokens = 50
    metrics.catch_up()
    assert samples(metrics, None)["vllm:generation_tokens_total", "0", "base"] == 1


def test_adapters_that_clients_compose_make_no_series() -> None:
    metrics = Metrics("base", INFO)
    for number in range(3):
        metrics.begin(Usage(2, 0, 1), OTHER, f"composed-{number}").close("abort")
    found = samples(metrics, None)
    assert found["livery_adapter_generation_tokens_total", OTHER] == 3
    assert metrics.adapters.names() == []


def test_tokens_belong_to_the_seconds_they_came_in() -> None:
    flow = Throughput(1000.0)
    flow.add(1000.25, 1000.75, 10)
    flow.add(1000.75, 1002.75, 40)
    flow.add(1003.5, 1003.5, 0, prompt=9)
    generated, prompt = flow.by_second(1004.2)
    assert generated[-4:] == [15, 20, 15, 0]
    assert prompt[-4:] == [0, 0, 0, 9]
    assert len(generated) == WINDOW_S
    flow.add(1004.0, 1304.0, 300)  # nobody looked for minutes
    assert flow.by_second(1304.0)[0] == [5] * WINDOW_S
    assert sum(flow.by_second(2000.0)[0]) == 0
