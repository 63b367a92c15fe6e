"""An engine that is lost comes back: requests are told so, and the next ones are answered as before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
from peft import LoraConfig

from engine.families import linear_targets, save
from engine.oracle import ref, save_adapter
from engine.supervised import CEILING_S, Started, config, greedy, outcome, supervised, task_named, tokens
from livery.engine.base import EngineRestarting
from livery.engine.messages import pulse_address


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
async def started(base: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Started]:
    async with supervised(config(base), tmp_path_factory.mktemp("faults")) as started:
        yield started


async def test_a_killed_engine_comes_back_with_its_adapters(started: Started, base: Path, tmp_path: Path) -> None:
    engine, lora = started.engine, LoraConfig(r=4, target_modules=linear_targets("llama"))
    lost = len(started.clients)
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
    assert stats.restarts == lost == len(started.clients) - 1
    assert stats.blocks_free == stats.blocks_total
    async with asyncio.timeout(CEILING_S):
        while len({*(held := await engine.stats()).host_adapters, *held.resident_adapters}) < 2:
            await asyncio.sleep(0.05)  # they are read again without anybody's asking
    for adapter in (kept, used):
        assert await tokens(engine, greedy(adapter.digest, adapter)) == before[adapter.digest]
    assert gone.digest not in (await engine.stats()).resident_adapters
    folders = [client._scratch for client in started.clients]
    assert [folder is not None and folder.path.exists() for folder in folders] == [False] * lost + [True]


async def test_an_engine_that_nobody_listens_to_any_more_is_lost(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("engine-messages", "engine-exit"):  # and "engine-pulse" in the test after this one
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
    assert client._scratch is not None
    socket = context.socket(zmq.PUSH)
    try:
        socket.connect(pulse_address(f"ipc://{client._scratch.path}/engine"))
        async with asyncio.timeout(CEILING_S):
            while not client._death.is_set():  # real beats come between these
                socket.send(b"\xc1")
                await asyncio.sleep(0)
    finally:
        context.destroy(linger=0)
    assert "engine-pulse" in await client.died()
    await started.back()
