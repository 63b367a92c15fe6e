"""The engine in its own process, over its real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from engine.families import linear_targets, save
from engine.oracle import Oracle, Recorded, ref, save_adapter
from livery.engine import messages as m
from livery.engine.base import (
    AdapterLoadFailed,
    AdapterRef,
    EngineConfig,
    EngineDead,
    GenerationRequest,
    ModelRefused,
    RequestRefused,
    SamplingParams,
)
from livery.engine.client import EngineClient, _environment
from livery.engine.figures import PromptRead

MAX_LEN = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
async def engine(base: Path) -> AsyncIterator[EngineClient]:
    client = EngineClient(config(base))
    await client.start()
    yield client
    await client.stop()


def config(base: Path) -> EngineConfig:
    return EngineConfig(
        str(base), max_model_len=MAX_LEN, kv_memory_bytes=1 << 20, adapter_memory_bytes=1 << 20, threads=1
    )


def greedy(name: str, prompt: list[int], max_tokens: int = 8, adapter: AdapterRef | None = None) -> GenerationRequest:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return GenerationRequest(name, prompt, params, adapter)


async def tokens(engine: EngineClient, request: GenerationRequest) -> list[int]:
    return [token async for delta in engine.generate(request) for token in delta.token_ids]


async def test_streams_side_by_side_match_the_oracle(engine: EngineClient, base: Path, tmp_path: Path) -> None:
    lora = save_adapter(base, tmp_path / "a", 1, LoraConfig(r=4, target_modules=linear_targets("llama")))
    await engine.load_adapter(ref(lora))
    prompts = [[3 + i, 20, 30 + i] for i in range(6)]
    answers = await asyncio.gather(
        *(tokens(engine, greedy(str(i), p, adapter=ref(lora) if i % 2 else None)) for i, p in enumerate(prompts))
    )
    oracle = Oracle(base, MAX_LEN)
    oracle.assert_visible(prompts[1], lora)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        expected = oracle.logits(prompt + answer, lora if index % 2 else None)
        assert answer == [int(row.argmax()) for row in expected[len(prompt) - 1 : -1]]


async def test_closing_a_stream_frees_everything(engine: EngineClient) -> None:
    stream = engine.generate(greedy("a", [5, 6, 7], max_tokens=60))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    stats = await engine.stats()  # goes through the engine's queue, behind the abort
    assert stats.running == stats.waiting == 0
    assert stats.blocks_free == stats.blocks_total


async def test_nothing_stays_in_the_temporary_directory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what a server left there that was killed."""
    with tempfile.TemporaryDirectory() as short:  # pytest's own are too long for the names of sockets
        monkeypatch.setattr(tempfile, "tempdir", short)
        left = Path(short) / "livery-engine-left"
        left.mkdir()
        engine = EngineClient(config(base))
        await engine.start()
        assert len(list(Path(short).iterdir())) == 1 and not left.exists()
        await engine.stop()
        assert not list(Path(short).iterdir())


async def test_leaving_before_the_answer_tells_how_much_of_the_prompt_was_read(base: Path) -> None:
    """The engine stands still meanwhile, so that it hears of the request and of its end at once, behind another one."""
    engine = EngineClient(msgspec.structs.replace(config(base), max_running=1))
    await engine.start()
    try:
        assert engine.pid is not None
        async with aclosing(engine.generate(greedy("runs", [5, 6, 7], max_tokens=60))) as runs:
            await anext(runs)
            os.kill(engine.pid, signal.SIGSTOP)
            read, begun = PromptRead(), PromptRead()
            queued = asyncio.create_task(anext(engine.generate(greedy("queued", [5, 6]), read)))
            await asyncio.sleep(0)  # until it is sent
            queued.cancel()
            os.kill(engine.pid, signal.SIGCONT)
            with pytest.raises(asyncio.CancelledError):
                await queued
            assert (read.tokens, read.cached) == (0, 0)
            os.kill(engine.pid, signal.SIGSTOP)
        stream = engine.generate(greedy("begun", [5, 6, 7]), begun)
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        os.kill(engine.pid, signal.SIGCONT)
        await first
        await stream.aclose()
        assert begun.tokens is None, "its answer has begun: nothing is waited for"
        assert await tokens(engine, greedy("next", [5, 6]))
    finally:
        await engine.stop()


async def test_who_asks_at_once_whether_it_is_ready_shares_one_bare_ping(
    engine: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the engine's own loop each time, and without its figures."""
    assert engine.pid is not None
    sent: list[m.ToEngine] = []
    send = engine._send

    async def noted(message: m.ToEngine) -> None:
        sent.append(message)
        await send(message)

    monkeypatch.setattr(engine, "_send", noted)
    os.kill(engine.pid, signal.SIGSTOP)
    asked = [asyncio.create_task(engine.ready()) for _ in range(50)]
    left = asyncio.create_task(engine.ready())
    await asyncio.sleep(0)
    left.cancel()
    assert not any(one.done() for one in asked)
    os.kill(engine.pid, signal.SIGCONT)
    assert all(await asyncio.gather(*asked))
    assert sent == [m.Ping()]
    assert engine._ping is not None
    await engine._ping
    assert await engine.ready()
    assert sent == [m.Ping(), m.Ping()], "an answer is as old as its question"
    with pytest.raises(asyncio.CancelledError):
        await left
    assert len(msgspec.msgpack.encode(m.Pong())) < 16


async def test_what_can_never_run_is_refused(engine: EngineClient) -> None:
    with pytest.raises(RequestRefused, match=f"{MAX_LEN}"):
        await tokens(engine, greedy("long", [5] * MAX_LEN))
    with pytest.raises(RequestRefused, match="vocabulary"):
        await tokens(engine, greedy("alien", [5, 100_000]))
    assert await tokens(engine, greedy("fine", [5, 6]))


async def test_a_bad_adapter_fails_its_own_requests_only(engine: EngineClient, tmp_path: Path) -> None:
    missing = AdapterRef.of("0" * 64, str(tmp_path / "nowhere"))
    with pytest.raises(AdapterLoadFailed, match="nowhere"):
        await engine.load_adapter(missing)
    deltas, answer = await asyncio.gather(
        _collect(engine, greedy("bad", [5, 6], adapter=missing)), tokens(engine, greedy("good", [5, 6]))
    )
    assert deltas.error is not None and "nowhere" in deltas.error
    assert len(answer) == 8


async def test_seeded_requests_repeat_whatever_the_company(engine: EngineClient) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=42, ignore_eos=True)
    alone = await tokens(engine, GenerationRequest("alone", [5, 6, 7], params))
    crowd = [greedy(str(i), [9 + i, 3]) for i in range(5)]
    together, *_ = await asyncio.gather(
        tokens(engine, GenerationRequest("again", [5, 6, 7], params)), *(tokens(engine, other) for other in crowd)
    )
    assert together == alone


async def test_a_killed_engine_fails_whatever_is_under_way_and_says_so(base: Path) -> None:
    """An answer that has begun, requests and questions that arrive as it dies, and those that come later."""
    engine = EngineClient(config(base))
    await engine.start()
    try:
        stream = engine.generate(greedy("a", [5, 6, 7], max_tokens=60))
        await anext(stream)
        arriving = [asyncio.create_task(tokens(engine, greedy(str(i), [5, 6], max_tokens=60))) for i in range(300)]
        pings = [asyncio.create_task(engine.stats()) for _ in range(5)]
        await asyncio.sleep(0)  # all of them begin
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDead, match="status -9"):
            async for _ in stream:
                pass
        async with asyncio.timeout(30):
            assert "status -9" in await engine.died()
            outcomes = await asyncio.gather(*arriving, *pings, return_exceptions=True)
        assert all(isinstance(outcome, EngineDead) for outcome in outcomes if isinstance(outcome, Exception))
        assert sum(isinstance(outcome, EngineDead) for outcome in outcomes) > 0
        with pytest.raises(EngineDead):
            await engine.stats()
        with pytest.raises(EngineDead):
            await tokens(engine, greedy("b", [5]))
    finally:
        await engine.stop()


async def test_a_refused_model_is_reported_by_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(ModelRefused, match=r"has no \*\.safetensors; save the model with safetensors"):
        await EngineClient(EngineConfig(str(tmp_path))).start()
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelRefused, match="nothing-known"):
        await EngineClient(EngineConfig(str(tmp_path))).start()


async def _collect(engine: EngineClient, request: GenerationRequest) -> Recorded:
    result = Recorded()
    async for delta in engine.generate(request):
        result.tokens += delta.token_ids
        result.finish, result.error = delta.finish_reason, delta.error
    return result


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, "1"), ("4,6", "6"), ("GPU-5ba7c4, GPU-91fe02", "GPU-91fe02"), ("2,3,-1,5", "3")]
)
def test_one_of_several_gpus_is_the_only_one_its_process_sees(
    visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _environment(EngineConfig("model", device="cuda:1"))["CUDA_VISIBLE_DEVICES"] == expected
    assert _environment(EngineConfig("model", device="cuda")).get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.parametrize(("visible", "count"), [("4,6", 2), ("", 0), ("4,-1,6,7", 1)])
def test_a_gpu_that_is_not_visible_is_refused_by_name(
    visible: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ModelRefused, match=rf"--device cuda:2 .*CUDA_VISIBLE_DEVICES={visible}, which shows {count} "):
        _environment(EngineConfig("model", device="cuda:2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
async def test_a_refusal_names_the_device_that_was_asked_for(base: Path) -> None:
    client = EngineClient(EngineConfig(str(base), device="cuda:1", threads=1))
    with pytest.raises(ModelRefused, match=r"--device cuda:1: .*no CUDA device"):
        await client.start()
