"""How much memory goes to the KV cache and to adapters, and how long a sequence that allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from livery.engine.base import CPU_KV_SHARE, EngineConfig, ModelRefused
from livery.host import memory

GIB = 1 << 30
# Shares of the memory free once the weights are loaded. The rest is for activations and the allocator's slack.
CUDA_KV_SHARE, CUDA_ADAPTER_SHARE = 0.65, 0.2
CPU_KV_MOST = GIB  # beyond it CPUs run out of speed before they run out of cache
# Of the host's memory, for adapters that aren't in device memory (on CPU: aren't in use) but may soon be again.
HOST_SHARE = {"cpu": 0.1, "cuda": 0.25}


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Device memory, in blocks and bytes, and the host's; `max_model_len` tokens is the longest sequence admitted."""

    num_blocks: int
    adapter_bytes: int
    host_adapter_bytes: int
    max_model_len: int


class Budget(NamedTuple):
    """Bytes for the KV cache and for adapters on the device, and for adapters on the host."""

    kv: int
    adapters: int
    host_adapters: int


def budget_of(config: EngineConfig, device: torch.device) -> Budget:
    """What was asked for, and shares of what is free now for the rest."""
    free = _free_bytes(device)
    if device.type == "cuda":
        kv_bytes = config.kv_memory_bytes or int(free * CUDA_KV_SHARE)
        adapter_bytes = config.adapter_memory_bytes or int(free * CUDA_ADAPTER_SHARE)
    else:
        kv_bytes = config.kv_memory_bytes or min(CPU_KV_MOST, int(free * CPU_KV_SHARE))
        adapter_bytes = config.adapter_memory_bytes or kv_bytes // 2
    host_bytes = config.host_adapter_memory_bytes or int(memory().available * HOST_SHARE[device.type])
    return Budget(kv_bytes, adapter_bytes, host_bytes)


def plan_memory(
    config: EngineConfig, device: torch.device, bytes_per_token: int, trained_len: int, least_tokens: int
) -> MemoryPlan:
    """Divide what is free after loading. Raises ModelRefused when the configured sizes don't fit together."""
    kv_bytes, adapter_bytes, host_bytes = budget_of(config, device)
    num_blocks = kv_bytes // (config.block_size * bytes_per_token)
    tokens = num_blocks * config.block_size
    if tokens < least_tokens:
        raise ModelRefused(
            f"--kv-memory {kv_bytes} bytes holds {tokens} tokens of this model, and not even the check at start fits; "
            f"give at least {least_tokens * bytes_per_token} bytes"
        )
    longest = min(trained_len, tokens)
    if config.max_model_len > longest:
        raise ModelRefused(
            f"--max-model-len {config.max_model_len} is more than the {longest} tokens that the model "
            f"({trained_len}) and {kv_bytes / GIB:.2f} GiB of KV memory ({tokens}) allow; lower it or raise --kv-memory"
        )
    return MemoryPlan(num_blocks, adapter_bytes, host_bytes, config.max_model_len or longest)


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else memory().available
