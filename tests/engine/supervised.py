"""A supervised engine over real processes, what is asked of it, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.faults import faulty
from livery.engine.base import (
    AdapterRef,
    EngineConfig,
    EngineError,
    EngineRestarting,
    GenerationRequest,
    SamplingParams,
)
from livery.engine.client import EngineClient
from livery.engine.supervisor import Lost, SupervisedEngine

CEILING_S = 240  # so that nothing hangs: how soon it is on a free machine is measured by tests/chaos/engine_kill.py
PROMPT = [5, 6, 7]


class Started:
    """A supervised engine, the clients it has had, and the folder that its faults come from.

    It is started anew without pauses, so that one engine can be lost by many tests.
    """

    def __init__(self, config: EngineConfig, faults: Path) -> None:
        self.faults = faults
        self.clients: list[EngineClient] = []
        self.engine = SupervisedEngine(config, self._make, pause_s=0.0)

    def _make(self, config: EngineConfig, lost: Lost) -> EngineClient:
        self.clients.append(EngineClient(config, lost=lost))
        return self.clients[-1]

    @property
    def pid(self) -> int:
        assert self.clients[-1].pid is not None
        return self.clients[-1].pid

    async def back(self) -> None:
        """Wait until it serves again."""
        async with asyncio.timeout(CEILING_S):
            while True:
                try:
                    if await self.engine.ready():
                        return
                except EngineRestarting:
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def supervised(config: EngineConfig, folder: Path) -> AsyncIterator[Started]:
    """One whose processes have faults on demand."""
    with pytest.MonkeyPatch.context() as environ:
        for name, value in faulty(folder).items():
            environ.setenv(name, value)
        started = Started(config, folder)
        await started.engine.start()
        try:
            yield started
        finally:
            await started.engine.stop()


def config(base: Path, restarts: int = 50) -> EngineConfig:
    return EngineConfig(
        str(base), max_model_len=64, kv_memory_bytes=1 << 20, adapter_memory_bytes=1 << 20, threads=1,
        restarts=restarts, hang_s=2.0,
    )  # fmt: skip


def greedy(name: str, adapter: AdapterRef | None = None, max_tokens: int = 8) -> GenerationRequest:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return GenerationRequest(name, PROMPT, params, adapter)


async def tokens(engine: SupervisedEngine, request: GenerationRequest) -> list[int]:
    found = []
    async for delta in engine.generate(request):
        assert delta.error is None, delta.error
        found += delta.token_ids
    return found


async def outcome(engine: SupervisedEngine, request: GenerationRequest) -> list[int] | EngineError:
    """The tokens, or with what the engine ended the request."""
    try:
        return await tokens(engine, request)
    except EngineError as error:
        return error


def task_named(name: str) -> asyncio.Task[Any]:
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    return task
