"""What the server knows without asking its engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import Metric

from livery import __version__
from livery.engine.base import EngineInfo
from livery.metrics.plain import counter, gauge


@dataclass(frozen=True, slots=True)
class ServerState:
    """How the server stands at the moment of a scrape."""

    ready: bool = False  # as GET /ready has it
    heartbeat_age_s: float = 0.0  # since the engine last answered anything
    restarts: int = 0  # of the engine's process, as far as it told
    open_sequences: int = 0  # under way or waiting
    max_open_sequences: int = 0
    queued_tokens: int = 0  # of prompts whose answers haven't begun
    max_queued_tokens: int = 0
    open_by_tenant: Mapping[str, int] = field(default_factory=dict)
    queued_by_tenant: Mapping[str, int] = field(default_factory=dict)
    processes: tuple[int, ...] = ()  # ids of those that serve HTTP, where there are several
    cpu_s: float | None = None  # of theirs and their predecessors' processor time, where there are several
    workers: int = 1  # processes that take requests
    worker_restarts: int = 0


def server_families(state: ServerState, base_name: str, info: EngineInfo) -> Iterator[Metric]:
    build = {
        "version": __version__,
        "base": base_name,
        "base_digest": info.base_digest[:12],
        "architecture": info.architecture,
        "device": info.device,
        "dtype": info.dtype,
        "kernels": info.kernels,
        "decoder": info.decoder,
    }
    yield gauge("livery_build_info", "What is running", build, 1)
    for name, text, value in (
        ("ready", "1 while a new request could get on, as GET /ready has it", int(state.ready)),
        ("engine_heartbeat_age_seconds", "Since the engine last answered", state.heartbeat_age_s),
        ("open_sequences", "Sequences under way or waiting", state.open_sequences),
        ("open_sequences_limit", "Most sequences under way or waiting (--max-open)", state.max_open_sequences),
        ("queued_tokens", "Prompt tokens of answers that haven't begun", state.queued_tokens),
        ("queued_tokens_limit", "Most of them (--max-queued-tokens)", state.max_queued_tokens),
        ("api_workers", "Processes that take requests (--api-workers)", state.workers),
    ):
        yield gauge(f"livery_{name}", text, {}, value)
    yield counter("livery_api_worker_restarts", "Workers that ended by themselves", {}, state.worker_restarts)
    yield counter("livery_engine_restarts", "Losses of the engine that it came back from", {}, state.restarts)
