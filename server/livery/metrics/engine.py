"""The engine's numbers as families."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import Metric

from livery.engine.base import EngineInfo
from livery.metrics.plain import Labels, counter, gauge
from livery.metrics.snapshot import Snapshot
from livery.metrics.steps import step_families


def engine_families(snapshot: Snapshot, info: EngineInfo, labels: Labels) -> Iterator[Metric]:
    stats = snapshot.stats
    used = (stats.blocks_total - stats.blocks_free) / stats.blocks_total if stats.blocks_total else 0.0
    for name, text, value in (
        ("vllm:num_requests_running", "Sequences being computed", stats.running),
        ("vllm:num_requests_waiting", "Sequences waiting for their first step", stats.waiting),
        ("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", used),
    ):
        yield gauge(name, text, labels, value)
    for name, text, value in (
        ("vllm:num_preemptions", "Preemptions", stats.preemptions),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prefix_queries),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_hits),
        ("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead and checked", stats.drafted_tokens),
        ("vllm:spec_decode_num_accepted_tokens", "Tokens guessed ahead that were right", stats.accepted_tokens),
    ):
        yield counter(name, text, labels, value)
    cache = {
        **labels,
        "block_size": str(info.block_size),
        "num_gpu_blocks": str(info.num_blocks),
        "enable_prefix_caching": str(info.prefix_cache),
    }
    if stats.blocks_cached is not None:
        yield gauge("livery_prefix_cache_blocks", "KV blocks that can be found by content", {}, stats.blocks_cached)
    yield gauge("vllm:cache_config_info", "How the KV cache is cut", cache, 1)
    if (adapters := snapshot.adapters) is not None:
        # One sample, always: routers take the newest, and every label combination would stay for ever.
        lora = {
            "max_lora": str(info.max_running),
            "running_lora_adapters": ",".join(adapters.resident),
            "waiting_lora_adapters": ",".join(adapters.waiting),
        }
        yield gauge("vllm:lora_requests_info", "Adapters in device memory and waiting", lora, time.time())
        yield gauge("livery_adapters_registered", "Adapters served by name", {}, adapters.served)
    yield gauge("livery_adapter_memory_bytes", "Adapter bytes in device memory", {}, stats.adapter_bytes)
    yield gauge("livery_adapter_memory_limit_bytes", "Adapter bytes allowed", {}, info.adapter_memory_bytes)
    yield gauge("livery_host_adapter_memory_bytes", "Adapter bytes in host memory", {}, stats.host_adapter_bytes)
    limit = info.host_adapter_memory_bytes
    yield gauge("livery_host_adapter_memory_limit_bytes", "Adapter bytes allowed in host memory", {}, limit)
    yield gauge("livery_host_adapters", "Adapters in host memory", {}, len(stats.host_adapters))
    from_host = ("livery_adapter_loads_from_host", "Loads whose weights were in host memory")
    yield from step_families(stats.steps, stats.figures)
    totals: tuple[tuple[str, str, int | None], ...] = (
        ("livery_adapter_loads", "Adapters brought into device memory", stats.adapter_loads),
        (*from_host, stats.adapter_loads_from_host),
        ("livery_adapter_evictions", "Adapters moved out of device memory", stats.adapter_evictions),
        ("livery_prefix_cache_evictions", "Cached KV blocks given to other tokens", stats.prefix_evictions),
    )
    for name, text, total in totals:
        if total is not None:  # else the engine doesn't know
            yield counter(name, text, {}, total)
