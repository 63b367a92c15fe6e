"""Metrics as a scraper reads them: names, one adapter sample, a bounded number of series that only grow."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from livery.engine.base import EngineInfo, EngineStats
from livery.generation import Usage
from livery.metrics import OTHER, AdapterCounts, Metrics, Snapshot, Standing, Top
from livery_adapters.base_model import BaseShapes

INFO = EngineInfo(
    architecture="Fake",
    base_digest="0" * 64,
    device="cpu",
    dtype="float32",
    attention="none",
    kernels="none",
    vocab_size=10,
    max_model_len=100,
    eos_token_ids=(),
    block_size=16,
    num_blocks=8,
    max_batch_tokens=64,
    max_running=4,
    adapter_memory_bytes=1000,
    weight_bytes=0,
    shapes=BaseShapes({}),
)


def samples(metrics: Metrics, snapshot: Snapshot | None) -> dict[tuple[str, ...], float]:
    """Every sample by its name and label values."""
    families = text_string_to_metric_families(metrics.render(snapshot).decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def counts(tokens: int) -> AdapterCounts:
    made = AdapterCounts(0, tokens)
    made.requests["stop"] = 1
    return made


def test_the_names_routers_and_dashboards_read() -> None:
    metrics = Metrics("base", INFO)
    meter = metrics.begin(Usage(5, 0, 3), "pirate")
    sequence = meter.sequence()
    sequence.tokens(1)
    sequence.tokens(2)
    sequence.finished("stop", 3)
    meter.finished()
    meter.close("abort")
    stats = EngineStats(
        running=2, waiting=3, blocks_total=8, blocks_free=6, preemptions=7, drafted_tokens=9, accepted_tokens=5,
        prefix_queries=40, prefix_hits=32, prefix_evictions=6, blocks_cached=4,
    )  # fmt: skip
    found = samples(metrics, Snapshot(stats, Standing(1)))
    whole = ("base", "0")
    names = {name for name, *_ in found}
    for name in (
        "e2e_request_latency_seconds",
        "time_to_first_token_seconds",
        "request_time_per_output_token_seconds",
        "inter_token_latency_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_max_num_generation_tokens",
        "request_decode_time_seconds",
    ):
        assert f"vllm:{name}_bucket" in names
        each = 2 if name == "inter_token_latency_seconds" else 1  # of its three tokens two came after another
        assert found[(f"vllm:{name}_count", *sorted_labels(whole))] == each
    assert found[("vllm:request_max_num_generation_tokens_sum", *sorted_labels(whole))] == 3
    assert found[("vllm:prompt_tokens_total", *sorted_labels(whole))] == 5
    assert found[("vllm:generation_tokens_total", *sorted_labels(whole))] == 3
    assert found[("vllm:num_requests_running", *sorted_labels(whole))] == 2
    assert found[("vllm:num_requests_waiting", *sorted_labels(whole))] == 3
    assert found[("vllm:kv_cache_usage_perc", *sorted_labels(whole))] == 0.25
    assert found[("vllm:num_preemptions_total", *sorted_labels(whole))] == 7
    assert found[("vllm:prefix_cache_queries_total", *sorted_labels(whole))] == 40
    assert found[("vllm:prefix_cache_hits_total", *sorted_labels(whole))] == 32
    assert found[("livery_prefix_cache_evictions_total",)] == 6
    assert found[("livery_prefix_cache_blocks",)] == 4
    assert found[("vllm:spec_decode_num_draft_tokens_total", *sorted_labels(whole))] == 9
    assert found[("vllm:spec_decode_num_accepted_tokens_total", *sorted_labels(whole))] == 5
    assert found[("vllm:request_success_total", "0", "stop", "base")] == 1
    assert found[("livery_adapter_generation_tokens_total", "pirate")] == 3
    assert found[("livery_adapter_requests_total", "pirate", "stop")] == 1


def sorted_labels(whole: tuple[str, str]) -> tuple[str, str]:
    """The exposition orders labels by name: engine, model_name."""
    model, engine = whole
    return engine, model


def test_a_request_that_did_not_end_counts_as_what_ended_it() -> None:
    metrics = Metrics("base", INFO)
    metrics.begin(Usage(5), "pirate").close("abort")
    metrics.begin(Usage(5), None).close("error")
    found = samples(metrics, None)
    assert found[("vllm:request_success_total", "0", "abort", "base")] == 1
    assert found[("vllm:request_success_total", "0", "error", "base")] == 1
    assert found[("livery_adapter_requests_total", "pirate", "abort")] == 1
    assert not [key for key in found if key[0] == "vllm:num_requests_running"]  # the engine said nothing


def test_adapter_residency_is_exactly_one_sample() -> None:
    metrics = Metrics("base", INFO)
    for resident in (("a",), ("a", "b"), ()):
        snapshot = Snapshot(EngineStats(), Standing(3, (), resident, ("c",)))
        text = metrics.render(snapshot).decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        (sample,) = families["vllm:lora_requests_info"].samples
        assert sample.labels == {
            "max_lora": "4",
            "running_lora_adapters": ",".join(resident),
            "waiting_lora_adapters": "c",
        }
        assert sample.value > 1e9  # when it was so


def test_only_the_busiest_have_series_of_their_own() -> None:
    totals = Top(2, AdapterCounts)
    for name, tokens in (("a", 1), ("b", 50), ("c", 100)):
        totals.record(name, counts(tokens))
    rows = dict(totals.snapshot())
    assert set(rows) == {"b", "c", OTHER}
    before = {name: row.generation_tokens for name, row in rows.items()}
    totals.record("a", counts(7))
    after = {name: row.generation_tokens for name, row in totals.snapshot()}
    assert after == {**before, OTHER: before[OTHER] + 7}


def test_series_grow_by_new_work_and_nothing_else() -> None:
    totals = Top(1, AdapterCounts)
    before: dict[str, AdapterCounts] = {}
    for name, tokens in (("a", 10), ("b", 100), ("a", 500), ("b", 1), ("c", 5), ("b", 5000)):
        totals.record(name, counts(tokens))
        now = dict(totals.snapshot())
        assert len(now) <= 2
        for label in set(now) & set(before):
            assert now[label].generation_tokens >= before[label].generation_tokens
        assert sum(row.generation_tokens - _tokens(before, label) for label, row in now.items()) <= tokens
        before = now


def _tokens(rows: dict[str, AdapterCounts], label: str) -> int:
    return rows[label].generation_tokens if label in rows else 0


def test_the_series_of_an_adapter_that_is_gone_ends() -> None:
    totals = Top(10, AdapterCounts)
    totals.record("a", counts(3))
    totals.record("b", counts(4))
    totals.drop(["a"])
    rows = dict(totals.snapshot())
    assert set(rows) == {"b"}
    assert rows["b"].generation_tokens == 4
