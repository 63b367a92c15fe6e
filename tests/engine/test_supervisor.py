"""An engine that is lost comes back: requests are told so, and the next ones are answered as before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from peft import LoraConfig

from engine.families import linear_targets, save
from engine.faults import Fault, cause, faulty
from engine.oracle import ref, save_adapter
from livery.engine.base import (
    AdapterRef,
    EngineConfig,
    EngineDead,
    EngineError,
    EngineRestarting,
    GenerationRequest,
    SamplingParams,
)
from livery.engine.client import EngineClient
from livery.engine.messages import pulse_address
from livery.engine.pulse import FIRST_STEPS
from livery.engine.supervisor import LONGEST_PAUSE_S, WINDOW_S, Lost, RestartBudget, SupervisedEngine

MAX_LEN = 64
CEILING_S = 240  # so that nothing hangs: how soon it is on a free machine is measured by tests/chaos/engine_kill.py
PROMPT = [5, 6, 7]


class Started:
    """A supervised engine, the clients it has had, and the folder that its faults come from."""

    def __init__(self, config: EngineConfig, faults: Path) -> None:
        self.faults = faults
        self.clients: list[EngineClient] = []
        self.engine = SupervisedEngine(config, self._make)

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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture
async def started(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Started]:
    for name, value in faulty(tmp_path / "faults").items():
        monkeypatch.setenv(name, value)
    started = Started(config(base), tmp_path / "faults")
    await started.engine.start()
    yield started
    await started.engine.stop()


def config(base: Path, restarts: int = 50) -> EngineConfig:
    return EngineConfig(
        str(base), max_model_len=MAX_LEN, kv_memory_bytes=1 << 20, adapter_memory_bytes=1 << 20, threads=1,
        restarts=restarts,
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


async def test_a_killed_engine_comes_back_with_its_adapters(started: Started, base: Path, tmp_path: Path) -> None:
    engine, lora = started.engine, LoraConfig(r=4, target_modules=linear_targets("llama"))
    kept, used, gone = (ref(save_adapter(base, tmp_path / name, seed, lora)) for seed, name in enumerate("abc"))
    for adapter in (kept, used, gone):
        await engine.load_adapter(adapter)
        await tokens(engine, greedy(f"warm-{adapter.digest}", adapter))
    await engine.keep_adapters((kept.digest,))
    await engine.unload_adapter(gone.digest)
    before = {one.digest: await tokens(engine, greedy(one.digest, one)) for one in (kept, used)}
    assert set((await engine.stats()).resident_adapters) == {kept.digest, used.digest}

    requests = [asyncio.create_task(outcome(engine, greedy(f"{i}", max_tokens=60))) for i in range(100)]
    await asyncio.sleep(0)  # all of them begin
    os.kill(started.pid, signal.SIGKILL)
    async with asyncio.timeout(CEILING_S):
        told = await asyncio.gather(*requests)
    errors = [one for one in told if not isinstance(one, list)]
    assert errors
    assert all(isinstance(one, EngineRestarting) and one.retry_after >= 1 for one in errors)
    with pytest.raises(EngineRestarting):
        await engine.ready()
    with pytest.raises(EngineRestarting):
        await engine.load_adapter(used)

    await started.back()
    stats = await engine.stats()
    assert stats.restarts == 1
    assert stats.blocks_free == stats.blocks_total
    async with asyncio.timeout(CEILING_S):
        while len({*(held := await engine.stats()).host_adapters, *held.resident_adapters}) < 2:
            await asyncio.sleep(0.05)  # they are read again without anybody's asking
    for adapter in (kept, used):
        assert await tokens(engine, greedy(adapter.digest, adapter)) == before[adapter.digest]
    assert gone.digest not in (await engine.stats()).resident_adapters
    folders = [client._folder for client in started.clients]
    assert [folder is not None and folder.exists() for folder in folders] == [False, True]


@pytest.mark.parametrize("fault", ["stop", "spin", "lock", "device", "memory"])
async def test_whatever_takes_it_is_found_and_it_comes_back(started: Started, fault: Fault | str) -> None:
    engine = started.engine
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
    assert len(started.clients) >= 2
    assert await tokens(engine, greedy("after")) == answer


def task_named(name: str) -> asyncio.Task[Any]:
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    return task


async def test_an_engine_that_nobody_listens_to_any_more_is_lost(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("engine-messages", "engine-exit", "engine-pulse"):
        client = started.clients[-1]
        task_named(name).cancel()
        async with asyncio.timeout(CEILING_S):
            assert name in await client.died()
        await started.back()
        assert name in caplog.text
        assert started.clients[-1] is not client
        assert len(await tokens(started.engine, greedy(f"after-{name}"))) == 8


async def test_a_beat_that_can_not_be_read_ends_no_more_than_that_engine(started: Started) -> None:
    client, context = started.clients[-1], zmq.Context()
    socket = context.socket(zmq.PUSH)
    try:
        socket.connect(pulse_address(f"ipc://{client._folder}/engine"))
        async with asyncio.timeout(CEILING_S):
            while not client._death.is_set():  # real beats come between these
                socket.send(b"\xc1")
                await asyncio.sleep(0)
    finally:
        context.destroy(linger=0)
    assert "engine-pulse" in await client.died()
    await started.back()


async def test_who_looks_after_engines_is_missed(started: Started, caplog: pytest.LogCaptureFixture) -> None:
    engine = started.engine
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


async def _lost(engine: SupervisedEngine) -> EngineError | str | None:
    try:
        return "".join([delta.error or "" async for delta in engine.generate(greedy("under way"))])
    except EngineError as error:
        return error


async def test_without_restarts_its_end_is_final(base: Path, tmp_path: Path) -> None:
    started = Started(config(base, restarts=0), tmp_path)
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
