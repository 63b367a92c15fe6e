"""Whatever takes an engine's process, or has it hang, is found, and the next requests are answered as before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from engine.families import save
from engine.faults import Fault, cause
from engine.supervised import CEILING_S, Started, config, greedy, supervised, tokens
from livery.engine.base import EngineError, EngineRestarting
from livery.engine.pulse import FIRST_STEPS
from livery.engine.supervisor import SupervisedEngine


@pytest.fixture(scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Started]:
    folder = tmp_path_factory.mktemp("faults")
    async with supervised(config(save("llama", folder / "model")), folder / "faults") as started:
        yield started


@pytest.mark.parametrize("fault", ["stop", "spin", "lock", "device", "memory"])
async def test_whatever_takes_it_is_found_and_it_comes_back(started: Started, fault: Fault | str) -> None:
    engine, before = started.engine, len(started.clients)
    for number in range(FIRST_STEPS + 1):  # such steps are known then
        answer = await tokens(engine, greedy(f"warm-{number}"))
    if fault == "stop":
        os.kill(started.pid, signal.SIGSTOP)
    else:
        cause(started.faults, fault)  # type: ignore[arg-type]
    async with asyncio.timeout(CEILING_S):
        while not isinstance(await _lost(engine), EngineRestarting):  # a device's steps fail request by request first
            pass
    await started.back()
    assert len(started.clients) > before
    assert await tokens(engine, greedy("after")) == answer


async def _lost(engine: SupervisedEngine) -> EngineError | str | None:
    try:
        return "".join([delta.error or "" async for delta in engine.generate(greedy("under way"))])
    except EngineError as error:
        return error
