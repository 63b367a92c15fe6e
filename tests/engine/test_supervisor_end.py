"""When an engine that is lost doesn't come back, and who says so."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from engine.families import save
from engine.supervised import CEILING_S, Started, config, greedy, outcome, task_named, tokens
from livery.engine.base import EngineConfig, EngineDead
from livery.engine.fake import FakeEngine
from livery.engine.supervisor import LONGEST_PAUSE_S, WINDOW_S, RestartBudget, SupervisedEngine


async def test_who_looks_after_engines_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    engine = SupervisedEngine(EngineConfig(""), lambda config, lost: FakeEngine())
    await engine.start()
    assert await engine.ready()
    task_named("engine-residents").cancel()
    await asyncio.wait({task_named("engine-residents")})
    with pytest.raises(EngineDead, match="engine-residents"):
        await engine.ready()
    assert "engine-residents" in caplog.text
    assert len(await tokens(engine, greedy("still answered"))) == 8
    task_named("engine-supervisor").cancel()
    async with asyncio.timeout(CEILING_S):
        assert "engine-supervisor" in await engine.died()  # upon which the server ends
    with pytest.raises(EngineDead):
        await tokens(engine, greedy("refused"))
    assert "engine-supervisor" in caplog.text
    await engine.stop()


async def test_without_restarts_its_end_is_final(tmp_path: Path) -> None:
    started = Started(config(save("llama", tmp_path / "model"), restarts=0), tmp_path)
    await started.engine.start()
    try:
        stream = asyncio.create_task(outcome(started.engine, greedy("a", max_tokens=60)))
        await asyncio.sleep(0)
        os.kill(started.pid, signal.SIGKILL)
        async with asyncio.timeout(CEILING_S):
            assert "--engine-restarts 0" in await started.engine.died()
            told = await stream
        assert isinstance(told, list | EngineDead)
        with pytest.raises(EngineDead, match="status -9"):
            await started.engine.ready()
    finally:
        await started.engine.stop()


async def test_another_model_in_the_same_place_is_not_served(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "models")
    started = Started(config(folder), tmp_path)
    await started.engine.start()
    try:
        other = save("qwen2", tmp_path / "others")
        for file in other.iterdir():
            file.rename(folder / file.name)
        os.kill(started.pid, signal.SIGKILL)
        async with asyncio.timeout(CEILING_S):
            assert "have changed" in await started.engine.died()
        with pytest.raises(EngineDead):
            await started.engine.ready()
    finally:
        await started.engine.stop()


def test_restarts_are_counted_within_a_window() -> None:
    budget = RestartBudget(3)
    pauses = []
    while (pause := budget.pause(100.0)) is not None:
        budget.take(100.0)
        pauses.append(pause)
    assert pauses == [0.0, 1.0, 2.0]
    assert budget.pause(100.0 + WINDOW_S - 1) is None
    assert budget.pause(100.0 + WINDOW_S) == 0.0


def test_pauses_grow_up_to_a_bound() -> None:
    budget = RestartBudget(100)
    pauses = []
    for _ in range(10):
        pause = budget.pause(0.0)
        assert pause is not None
        pauses.append(pause)
        budget.take(0.0)
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S


def test_without_any_none_is_left() -> None:
    assert RestartBudget(0).pause(0.0) is None
