"""The settings that the engine goes by: for starting one, for saying what was asked of it, and for `livery doctor`."""

from __future__ import annotations

import shlex
from pathlib import Path

from pydantic import ByteSize

from livery.engine.base import EngineConfig
from livery.settings import Settings, flag

CHOICE_KNOBS = ("engine", "vllm_arg", "max_loras", "max_lora_rank", "max_cpu_loras")  # what only vLLM goes by, and it
ENGINE_KNOBS = (
    *("device", "dtype", "weights", "quantization", "kernels", "graphs", "decoder", "deterministic"),
    *("threads", "speculate", "prefix_cache", "max_model_len", "max_batch_tokens", "max_running"),
    *("kv_memory", "adapter_memory", "host_adapter_memory"),
)


def engine_config(settings: Settings, model: Path) -> EngineConfig:
    """What an engine is told that serves the model in this folder under these settings."""
    return EngineConfig(
        model_path=str(model),
        device=settings.device,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        kv_memory_bytes=int(settings.kv_memory),
        adapter_memory_bytes=int(settings.adapter_memory),
        host_adapter_memory_bytes=int(settings.host_adapter_memory),
        max_batch_tokens=settings.max_batch_tokens,
        max_running=settings.max_running,
        threads=settings.threads,
        speculate=settings.speculate,
        kernels=settings.kernels,
        weights=settings.weights,
        quantization=settings.quantization,
        graphs=settings.graphs,
        prefix_cache=settings.prefix_cache,
        decoder=settings.decoder,
        deterministic=settings.deterministic,
        log_level=settings.log_level,
        log_format=settings.log_format,
        hang_s=settings.hang_timeout,
        restarts=settings.engine_restarts,
    )


def asked_for(settings: Settings) -> str:
    """Every engine knob that isn't at its default, wherever it was set, written as flags."""
    return " ".join(
        as_flag(name, getattr(settings, name))
        for name in (*CHOICE_KNOBS, *ENGINE_KNOBS)
        if getattr(settings, name) != Settings.model_fields[name].default
    )


def as_flag(name: str, value: object) -> str:
    """A knob with its value as it is written on a command line."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    if isinstance(value, tuple):
        return " ".join(f"{flag(name)} {shlex.quote(str(item))}" for item in value)
    return f"{flag(name)} {value.human_readable() if isinstance(value, ByteSize) else value}"
