"""What vLLM is started with: our settings under its names, the room for adapters, and what the operator adds.

Reads `--vllm-arg KEY=VALUE`; which keys there are vLLM itself says (the fields of AsyncEngineArgs).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence

import msgspec
from pydantic import ValidationError

from livery.engine.base import CPU_KV_SHARE, EngineConfig
from livery.engine.vllm_found import VllmRefused
from livery.host import memory
from livery_adapters.base_model import BaseShapes
from livery_adapters.likeness import meant

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM may be started for
USUAL_RANK = 16  # what a server has room for that knows no adapter yet
FEWEST_SLOTS, MOST_SLOTS = 4, 32
MOST_IN_HOST = 256
KV_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"  # vLLM's own way of saying so
NOTHING: Mapping[str, object] = {}

# What isn't the operator's to set here, and what is in its place.
OURS: Mapping[str, str] = {
    "model": "--model",
    "tokenizer": "--model",
    "served_model_name": "--served-model-name",
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-running",
    "max_num_batched_tokens": "--max-batch-tokens",
    "scheduling_policy": "",
    "enable_prefix_caching": "--prefix-cache",
    "kv_cache_memory_bytes": "--kv-memory",
    "max_loras": "--max-loras",
    "max_lora_rank": "--max-lora-rank",
    "max_cpu_loras": "--max-cpu-loras",
    "dtype": "--dtype",
    "skip_tokenizer_init": "",
    "worker_extension_cls": "",
    "enable_lora": "",
    "disable_log_stats": "",
    "runner": "",
    "data_parallel_size": "",
    "enable_log_requests": "--log-level debug",
}


class AdapterRoom(msgspec.Struct, frozen=True):
    """How many adapters vLLM has room for: in a batch, in host memory; and their highest rank."""

    max_loras: int
    max_cpu_loras: int
    max_rank: int


def room_for(
    ranks: Sequence[int], max_running: int, *, loras: int = 0, cpu_loras: int = 0, rank: int = 0
) -> AdapterRoom:
    """Room for adapters of these ranks, as they are registered; what is given beside them decides in their place.

    A slot of vLLM takes the memory of the highest rank on every module, and its kernels look at each: so there are as
    many as adapters, within bounds, and no more than sequences.
    """
    most = rank or max([USUAL_RANK, *ranks])
    allowed = next((each for each in RANKS if each >= most), None)
    if allowed is None:
        raise VllmRefused(
            f"an adapter of rank {most} is asked for, and vLLM takes ranks up to {RANKS[-1]}; leave it out of what "
            "this server has, or use --engine livery"
        )
    slots = loras or min(max(len(ranks), FEWEST_SLOTS), MOST_SLOTS, max_running)
    in_host = cpu_loras or max(2 * slots, min(len(ranks), MOST_IN_HOST))
    if in_host < slots:
        raise VllmRefused(f"--max-cpu-loras is {in_host} and --max-loras {slots}: the first can't be the smaller one")
    return AdapterRoom(slots, in_host, allowed)


def parse_args(given: Sequence[str], known: Collection[str]) -> dict[str, object]:
    """`KEY=VALUE` texts as keywords of AsyncEngineArgs, whose fields are `known`; values are JSON, or else text.

    Raises VllmRefused, which names the nearest field for one that isn't there.
    """
    parsed: dict[str, object] = {}
    for text in given:
        key, equals, value = text.partition("=")
        name = key.strip().lstrip("-").replace("-", "_")
        if not equals:
            raise VllmRefused(f"--vllm-arg {text!r} has no value; write KEY=VALUE, as in tensor_parallel_size=2")
        if name in OURS:
            instead = f"; use {OURS[name]}" if OURS[name] else ", as Livery sets it itself"
            raise VllmRefused(f"--vllm-arg {name} can't be given{instead}")
        if name not in known:
            hint = meant(name, known) or "its manual lists them under AsyncEngineArgs"
            raise VllmRefused(f"--vllm-arg {name}: vLLM has no such argument; {hint}")
        parsed[name] = _value(value.strip())
    return parsed


def _value(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value


def words_of(error: Exception) -> str:
    """Why vLLM takes no such settings, in one line: of what pydantic says, by which it checks them, the words alone."""
    if isinstance(error, ValidationError):
        return "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
    return " ".join(str(error).split())


def engine_args(
    config: EngineConfig, room: AdapterRoom, shapes: BaseShapes, extra: Mapping[str, object] = NOTHING, *, cpu: bool
) -> dict[str, object]:
    """Our settings as keywords of AsyncEngineArgs, and the operator's `extra`. `cpu`: whether it computes on one here.

    Of a CPU's memory the KV cache has a share of what is free, as with our own engine: vLLM by itself asks for nearly
    all that there is, and doesn't start beside anything else.
    """
    kv_memory = config.kv_memory_bytes
    if cpu and not kv_memory and "gpu_memory_utilization" not in extra and not os.environ.get(KV_VARIABLE):
        kv_memory = int(memory().available * CPU_KV_SHARE)
    # On a GPU vLLM knows which the checkpoint has and the device can do.
    dtype = "float32" if cpu and config.dtype == "auto" else config.dtype
    args: dict[str, object] = {
        "model": config.model_path,
        "tokenizer": config.model_path,
        "dtype": dtype,
        "max_num_seqs": config.max_running,
        "scheduling_policy": "priority",  # by our counters of tenants (vllm_queue)
        "enable_prefix_caching": config.prefix_cache,
        "generation_config": "vllm",  # sampling and ends are said with every request
        "max_logprobs": -1,  # the API has a bound of its own
        "structured_outputs_config": {"backend": "guidance"},  # what our grammars are tried out with
        "enable_lora": True,
        "max_loras": room.max_loras,
        "max_cpu_loras": room.max_cpu_loras,
        "max_lora_rank": room.max_rank,
        "lora_target_modules": adaptable(shapes) or None,
        "worker_extension_cls": "livery.engine.vllm_worker.LiveryWorker",
        "disable_log_stats": True,  # of its own loggers; ours is given beside
    }
    asked = {
        "max_model_len": config.max_model_len,
        "max_num_batched_tokens": config.max_batch_tokens,
        "kv_cache_memory_bytes": kv_memory,
    }
    return args | {name: value for name, value in asked.items() if value} | dict(extra)


def adaptable(shapes: BaseShapes) -> list[str]:
    """Last names of the linear modules that vLLM is to put LoRA around: those of the layers, not the head.

    By default it wraps embedding and head as well, adapters or not, and every token pays for it.
    """
    linears = [path for path, shape in shapes.modules.items() if shape.kind == "linear" and shape.out_features]
    return sorted({path.rpartition(".")[2] for path in linears if _in_a_layer(path)})


def _in_a_layer(path: str) -> bool:
    return any(part.isdigit() for part in path.split("."))
