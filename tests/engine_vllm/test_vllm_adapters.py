"""Adapters on a real vLLM: which it takes, what it says of others, and that what is dropped is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig

from engine.oracle import save_tuned
from engine_vllm.both import (
    DEMO,
    MODEL,
    adapter,
    answer,
    ask,
    check_greedy,
    ids,
    logits,
    ref,
    tokens_of,
    vllm_engine,
)
from livery.engine.base import AdapterLoadFailed, AdapterPart, AdapterRef, EngineDead, RequestRefused
from livery.engine.codes import ADAPTER_LOST
from livery.engine.vllm import VllmEngine
from livery_adapters.composition import composition_digest
from livery_adapters.identity import converted_digest

pytestmark = pytest.mark.vllm

LINEAR = ["q_proj", "v_proj", "down_proj"]
PROMPT = "The weather today is"


@pytest_asyncio.fixture(scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    running = vllm_engine()
    await running.start()
    yield running
    await running.stop()


def made(folder: Path, config: PeftConfig, std: float = 0.02) -> Path:
    return save_tuned(MODEL, folder / "adapter", 3, config, std)


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM"} | fields))


async def test_unloading_frees_what_an_adapter_held(engine: VllmEngine) -> None:
    pirate = adapter("pirate")
    await engine.load_adapter(pirate)
    folders = list(engine._scratch.path.iterdir())  # type: ignore[union-attr]
    assert pirate.digest in (await engine.stats()).resident_adapters
    (known,) = await engine._process.call(engine._process.llm.list_loras())
    await engine.unload_adapter(pirate.digest)
    stats = await engine.stats()
    assert pirate.digest not in (*stats.resident_adapters, *stats.host_adapters)
    assert not await engine._process.call(engine._process.llm.list_loras())
    assert folders and not any(folder.exists() for folder in folders)
    await engine.load_adapter(pirate)
    (again,) = await engine._process.call(engine._process.llm.list_loras())
    assert again > known  # a number never comes to mean another adapter
    await engine.unload_adapter(pirate.digest)
    await engine.unload_adapter("0" * 64)


async def test_an_adapter_in_use_is_dropped_when_its_last_request_ends(engine: VllmEngine) -> None:
    pirate = adapter("pirate")
    stream = engine.generate(ask("in-use", PROMPT, pirate, max_tokens=24))
    found = list((await anext(stream)).token_ids)
    await engine.unload_adapter(pirate.digest)
    async for delta in stream:
        found += delta.token_ids
    check_greedy("pirate", ids(PROMPT), found)
    assert pirate.digest not in (await engine.stats()).resident_adapters


async def test_more_adapters_than_slots_take_turns_and_each_has_its_own_tokens(engine: VllmEngine) -> None:
    names = ["pirate", "sql", "json", "sentiment"]
    answers = await asyncio.gather(*(answer(engine, ask(f"turn-{name}", PROMPT, adapter(name))) for name in names))
    for name, deltas in zip(names, answers, strict=True):
        check_greedy(name, ids(PROMPT), tokens_of(deltas))
    for name in names:
        await engine.unload_adapter(adapter(name).digest)


async def test_adapters_beyond_vllms_host_memory_leave_the_disk_too_and_come_back(engine: VllmEngine) -> None:
    names = ["pirate", "sql", "json", "sentiment", "portuguese"]
    for name in (*names, "pirate"):
        check_greedy(name, ids(PROMPT), tokens_of(await answer(engine, ask(f"disk-{name}", PROMPT, adapter(name)))))
        assert len(list(engine._scratch.path.iterdir())) <= 3  # type: ignore[union-attr]
    for name in names:
        await engine.unload_adapter(adapter(name).digest)
    assert not list(engine._scratch.path.iterdir())  # type: ignore[union-attr]


async def test_kept_adapters_stay_when_others_come_and_never_fill_all_slots(engine: VllmEngine) -> None:
    kept = [adapter(name) for name in ("pirate", "sql")]
    for one in kept:
        await engine.load_adapter(one)
    await engine.keep_adapters(tuple(one.digest for one in kept))
    for name in ("json", "sentiment"):  # two slots: one of them is left to these
        check_greedy(name, ids(PROMPT), tokens_of(await answer(engine, ask(f"beside-{name}", PROMPT, adapter(name)))))
        assert kept[0].digest in (await engine.stats()).resident_adapters
    await engine.keep_adapters(())
    for name in ("pirate", "sql", "json", "sentiment"):
        await engine.unload_adapter(adapter(name).digest)


async def test_a_sum_of_adapters_is_one(engine: VllmEngine) -> None:
    parts = [
        AdapterPart(adapter(name).digest, str(DEMO / name), weight) for name, weight in (("pirate", 0.75), ("sql", 0.5))
    ]
    both = AdapterRef(composition_digest([(part.digest, part.weight) for part in parts]), tuple(parts))
    found = tokens_of(await answer(engine, ask("both", PROMPT, both)))
    for name in (None, "pirate", "sql"):
        alone = await answer(engine, ask(f"alone-{name}", PROMPT, adapter(name) if name else None))
        assert found != tokens_of(alone)
    await engine.unload_adapter(both.digest)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lora(use_dora=True), "output gain"),
        (
            IA3Config(
                target_modules=["k_proj", "v_proj", "down_proj"],
                feedforward_modules=["down_proj"],
                task_type="CAUSAL_LM",
            ),
            "IA3",
        ),
        (lora(lora_bias=True, target_modules=["q_proj"]), "--engine livery"),
        (lora(modules_to_save=["lm_head"]), "--engine livery"),
        (lora(target_modules=["embed_tokens", "q_proj"]), "embedding"),
        (lora(r=64), "--max-lora-rank 64"),
        (lora(trainable_token_indices=[5, 9]), "--engine livery"),
    ],
    ids=["dora", "ia3", "bias", "head", "embedding", "rank", "tokens"],
)
async def test_what_vllm_cannot_apply_is_refused_with_the_remedy(
    engine: VllmEngine, tmp_path: Path, config: PeftConfig, words: str
) -> None:
    folder = made(tmp_path, config)
    with pytest.raises(AdapterLoadFailed, match=words) as refused:
        await engine.load_adapter(ref(folder))
    assert "--engine livery" in str(refused.value) or "--max-lora-rank" in str(refused.value)
    (delta,) = await answer(engine, ask("refused", PROMPT, ref(folder)))
    assert (delta.finish_reason, delta.code) == ("error", ADAPTER_LOST)
    assert tokens_of(await answer(engine, ask("others-go-on", PROMPT)))


@pytest.mark.parametrize(
    "config",
    [lora(use_rslora=True), LoHaConfig(r=2, alpha=4, target_modules=LINEAR, task_type="CAUSAL_LM")],
    ids=["rslora", "loha"],
)
async def test_what_comes_to_a_lora_is_applied_exactly(engine: VllmEngine, tmp_path: Path, config: PeftConfig) -> None:
    folder = made(tmp_path, config, 0.05)
    effect = await engine.load_adapter(ref(folder))
    assert effect is not None and effect.exact and not effect.changes_nothing
    prompt, found = ids(PROMPT), tokens_of(await answer(engine, ask("exact", PROMPT, ref(folder))))
    check_greedy(str(folder), prompt, found)
    assert float((logits(str(folder), prompt) - logits(None, prompt)).abs().max()) > 0.1  # it moves what is compared
    await engine.unload_adapter(ref(folder).digest)


async def test_dora_is_factorised_where_that_is_asked_for(engine: VllmEngine, tmp_path: Path) -> None:
    folder = made(tmp_path, lora(use_dora=True))
    digest = ref(folder).digest
    rough = AdapterRef(converted_digest(digest, 16), (AdapterPart(digest, str(folder), approximate=16),))
    effect = await engine.load_adapter(rough)
    assert effect is not None and 0 < effect.error < 1
    assert tokens_of(await answer(engine, ask("rough", PROMPT, rough)))
    await engine.unload_adapter(rough.digest)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"temperature": 0.001}, "between 0 and 0.01"),
        ({"_adapter_start": 2}, "activated LoRA"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
    ],
)
async def test_what_vllm_would_do_otherwise_is_refused(engine: VllmEngine, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestRefused, match=words):
        await answer(engine, ask("refused-request", PROMPT, **asked))


async def test_ctrl_c_does_not_reach_its_process(engine: VllmEngine) -> None:
    os.kill(engine.pid, signal.SIGINT)
    assert len(tokens_of(await answer(engine, ask("after-ctrl-c", PROMPT, max_tokens=32)))) == 32


async def test_a_killed_process_gives_each_request_an_error() -> None:
    """Last here: it takes an engine of its own."""
    running = vllm_engine()
    await running.start()
    try:
        streams = [running.generate(ask(f"lost-{n}", PROMPT, max_tokens=400)) for n in range(3)]
        for stream in streams:
            await anext(stream)
        running.kill()
        async with asyncio.timeout(30):
            for stream in streams:
                with pytest.raises(EngineDead, match="process ended"):
                    async for _ in stream:
                        pass
            assert "process ended" in await running.died()
            with pytest.raises(EngineDead):
                await answer(running, ask("too-late", PROMPT))
            with pytest.raises(EngineDead):
                await running.load_adapter(adapter("pirate"))
            with pytest.raises(EngineDead):
                await running.stats()
    finally:
        await running.stop()
    assert not running._process._processes()


async def test_a_process_that_says_nothing_is_taken_to_hang_and_is_ended() -> None:
    running = vllm_engine(hang_s=0.2)  # 3 s of silence
    await running.start()
    try:
        stream = running.generate(ask("stopped", PROMPT, max_tokens=400))
        await anext(stream)
        os.kill(running.pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            assert "hangs" in await running.died()
            with pytest.raises(EngineDead, match="hangs"):
                async for _ in stream:
                    pass
    finally:
        await running.stop()


def test_the_salt_tells_all_its_parts_apart() -> None:
    from livery.engine.vllm_requests import cache_salt

    plain = ask("x", [1, 2], _tenant="a", _account="b", _cache_salt="c")
    others = [msgspec.structs.replace(plain, tenant="ab", account=""), msgspec.structs.replace(plain, cache_salt="d")]
    others += [
        msgspec.structs.replace(plain, adapter=adapter("pirate")),
        msgspec.structs.replace(plain, account="c", cache_salt="b"),
    ]
    assert len({cache_salt(request) for request in (plain, *others)}) == 5
