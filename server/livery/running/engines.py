"""Which engine a server gets: its own in a process of its own, or vLLM; and what the settings say to either."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from livery.data_folder import DataFolder
from livery.engine.base import Engine, EngineConfig
from livery.engine.quantization import check_flag
from livery.engine.supervisor import SupervisedEngine
from livery.running.engine_knobs import as_flag
from livery.running.parts import engine_process
from livery.settings import Settings, SettingsError
from livery_adapters.manifest import Limits, read_manifest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import Brief, Registry
from livery_adapters.tensor_file import CONFIG_NAME

log = logging.getLogger(__name__)

MakeEngine = Callable[[EngineConfig, Callable[[str], None]], Engine]

# What only one of the engines goes by.
OURS = (
    *("device", "weights", "quantization", "kernels", "graphs", "decoder", "deterministic", "threads", "speculate"),
    *("adapter_memory", "host_adapter_memory"),
)
VLLMS = ("vllm_arg", "max_loras", "max_lora_rank", "max_cpu_loras")


def engine_of(settings: Settings) -> MakeEngine:
    """What makes the engine that these settings ask for.

    Raises SettingsError, and ModelRefused without vLLM or the library that quantises.
    """
    check_knobs(settings)
    check_flag(settings.quantization, settings.device)
    return _vllm(settings) if settings.engine == "vllm" else engine_process


def check_knobs(settings: Settings) -> None:
    """Raise SettingsError for knobs that the engine asked for doesn't have, wherever they were set."""
    for name in OURS if settings.engine == "vllm" else VLLMS:
        if getattr(settings, name) != Settings.model_fields[name].default:
            other = "livery" if settings.engine == "vllm" else "vllm"
            remedy = "; what vLLM itself takes is given with --vllm-arg KEY=VALUE" if settings.engine == "vllm" else ""
            raise SettingsError(
                f"{as_flag(name, getattr(settings, name))} is for --engine {other}, and the engine is "
                f"{settings.engine}; leave it out{remedy}"
            )


def _vllm(settings: Settings) -> MakeEngine:
    from livery.engine.vllm import VllmEngine, VllmOptions
    from livery.engine.vllm_found import require_vllm

    require_vllm()

    def make(config: EngineConfig, progress: Callable[[str], None]) -> Engine:
        options = VllmOptions(
            args=settings.vllm_arg,
            ranks=tuple(registered_ranks(settings)),
            max_loras=settings.max_loras,
            max_cpu_loras=settings.max_cpu_loras,
            max_rank=settings.max_lora_rank,
        )
        return SupervisedEngine(config, lambda told, lost: VllmEngine(told, options, progress, lost))

    return make


def registered_ranks(settings: Settings) -> list[int]:
    """The highest rank in vLLM of every adapter that this server will have: those in its registry and in its folder.

    Of one that is approximated that is the rank asked for, and its own where that is higher and vLLM can have it: what
    of it is plain LoRA is then exact. Those that are in both count once, by their names in full.
    """
    ranks: dict[str, int] = {}
    folder = DataFolder(settings.data_folder)
    if settings.registry is not None or folder.database.exists():
        registry = Registry.open(settings.registry or folder.registry_url(), frozenset())
        try:
            ranks |= {brief.name: _rank_of(brief) for brief in registry.briefs() if brief.active is not None}
        finally:
            registry.close()
    if settings.adapters is not None:
        ranks |= _ranks_below(settings.adapters, settings.adapter_limits)
    return list(ranks.values())


def _rank_of(brief: Brief) -> int:
    from livery.engine.vllm_args import RANKS

    if not brief.approximate:
        return brief.rank
    return max(brief.rank if brief.rank <= RANKS[-1] else 0, min(brief.approximate, RANKS[-1]))


def _ranks_below(root: Path, limits: Limits) -> dict[str, int]:
    found = {}
    for file in (*root.glob(f"*/{CONFIG_NAME}"), *root.glob(f"*/*/{CONFIG_NAME}")):
        directory = file.parent
        try:  # a digest of nothing: only the headers are read
            manifest = read_manifest(directory, limits, digest="unread")
        except (AdapterRefused, OSError) as refused:  # which the folder's follower says again, by name
            log.debug("the rank of %s isn't known: %s", directory, refused)
            continue
        found[str(directory.relative_to(root))] = manifest.max_rank
    return found
