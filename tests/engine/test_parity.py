"""The decisive test: in a mixed batch every row is what PEFT and transformers give for that row alone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from engine.families import FUSED, PATHS, VOCABULARY, configs, embedding_name, linear_targets, save
from engine.oracle import Bench, Oracle, ref, save_adapter
from livery.engine.base import AdapterRef, EngineConfig
from livery.engine.model import load_model

MAX_LEN = 96
# 24 blocks of 4 tokens for six sequences of up to 48 tokens: preemption is certain. 7 tokens a step: so is chunking.
TIGHT = {"block_size": 4, "max_batch_tokens": 7, "max_running": 6, "max_model_len": MAX_LEN, "threads": 1}
ROOMY = {"adapter_memory_bytes": 1 << 20}


def lora_mix(family: str) -> dict[str, LoraConfig]:
    """Ranks, scalings and targets as different as one batch may hold."""
    linear = linear_targets(family)
    return {
        "r4": LoraConfig(r=4, lora_alpha=8, target_modules=linear),
        "r1-first": LoraConfig(r=1, lora_alpha=1, target_modules=linear[:1]),
        "rslora": LoraConfig(r=9, lora_alpha=3, use_rslora=True, target_modules=linear[-2:]),
        "patterns": LoraConfig(
            r=3,
            lora_alpha=6,
            target_modules=linear,
            rank_pattern={linear[0]: 6},
            alpha_pattern={linear[1]: 12},
        ),
        "embeddings": LoraConfig(r=5, lora_alpha=5, target_modules=[embedding_name(family), linear[0]]),
        "head": LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head", linear[1]]),
    }


@pytest.fixture(scope="module", params=list(configs()))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(family, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(family: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(base, folder / name, seed, config)
        for seed, (name, config) in enumerate(lora_mix(family).items())
    }


@pytest.fixture(scope="module")
def oracle(base: Path) -> Oracle:
    """One for all tests of a family: it answers for each row alone, whoever asks."""
    return Oracle(base, MAX_LEN)


def prompts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(2, 24))] for _ in range(count)]


@pytest.mark.parametrize("path", list(PATHS))
def test_mixed_batch_equals_each_row_alone(
    family: str, base: Path, adapters: dict[str, Path], oracle: Oracle, path: str
) -> None:
    if path == "own" and family not in FUSED:
        pytest.skip("its own forward is what runs by default")
    bench = Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), **PATHS[path], **ROOMY, **TIGHT))
    assert bench.runner.info.decoder == ("fused" if family in FUSED and path != "own" else "transformers")
    choices: list[Path | None] = [None, *adapters.values()]
    read_all(bench, map(ref, adapters.values()))
    requests = list(enumerate(prompts(2 * len(choices), seed=3)))
    for index, prompt in requests:
        adapter = choices[index % len(choices)]
        bench.add(str(index), prompt, ref(adapter) if adapter else None, max_tokens=24)
    results = bench.run()
    stats = bench.core.stats()
    assert stats.preemptions > 0, "the test means to force preemption"
    assert stats.blocks_free == stats.blocks_total
    for index, prompt in requests:
        adapter = choices[index % len(choices)]
        if adapter is not None:
            oracle.assert_visible(prompt, adapter)
        oracle.assert_same(prompt, results[str(index)], adapter, count=24)


def test_adapters_larger_than_memory_take_turns(base: Path, adapters: dict[str, Path], oracle: Oracle) -> None:
    """With room for the two largest adapters at a time, all are served exactly, and none starves."""
    sizes = measured_bytes(base, map(ref, adapters.values()))
    budget = sum(sorted(sizes)[-2:])
    config = EngineConfig(str(base), kv_memory_bytes=4 * kv_bytes(base), adapter_memory_bytes=budget, **TIGHT)
    bench = Bench(config)
    order = list(adapters.values()) * 3
    for index, (prompt, adapter) in enumerate(zip(prompts(len(order), seed=5), order, strict=True)):
        bench.add(str(index), prompt, ref(adapter), max_tokens=4)
    results = bench.run()
    stats = bench.core.stats()
    assert stats.adapter_evictions > 0
    assert stats.adapter_bytes <= budget
    for index, (prompt, adapter) in enumerate(zip(prompts(len(order), seed=5), order, strict=True)):
        oracle.assert_same(prompt, results[str(index)], adapter, count=4)


def test_sampling_is_the_same_alone_and_preempted_in_a_crowd(base: Path, adapters: dict[str, Path]) -> None:
    """Every sampling field at once, on the real runner: what a request draws depends on nobody else."""
    fields = [
        {"temperature": 0.8, "top_p": 0.9, "seed": 1},
        {"temperature": 1.3, "top_k": 5, "seed": 2, "min_tokens": 12, "ignore_eos": False},
        {"temperature": 0.7, "min_p": 0.1, "seed": 3, "stop_token_ids": (4, 5, 6, 7), "ignore_eos": False},
        {"temperature": 1e-307, "seed": 4},
        {"temperature": 0.0, "min_tokens": 8, "stop_token_ids": (8, 9), "ignore_eos": False},
    ]
    choices = [None, *map(ref, adapters.values())]
    asked = prompts(10, seed=9)

    def run(bench: Bench, indices: list[int]) -> dict[int, list[int]]:
        read_all(bench, [choice for index in indices if (choice := choices[index % 7]) is not None])
        for index in indices:
            bench.add(str(index), asked[index], choices[index % 7], max_tokens=20, **fields[index % 5])
        results = bench.run()
        assert not [result.error for result in results.values() if result.error]
        return {index: results[str(index)].tokens for index in indices}

    config = EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), **ROOMY, **TIGHT)
    crowd, alone = Bench(config), Bench(config)
    together = run(crowd, list(range(10)))
    assert crowd.core.stats().preemptions > 0, "a crowd means to be preempted"
    for index in range(10):
        assert run(alone, [index]) == {index: together[index]}
    assert alone.core.stats().preemptions == alone.core.stats().prefix_hits == 0, "each was alone"


def read_all(bench: Bench, adapters: Iterable[AdapterRef]) -> None:
    """Wait until adapters are in memory: a slow disk must not thin out a crowd that is to be preempted."""
    wanted = {adapter.digest: adapter for adapter in adapters}
    for adapter in wanted.values():
        bench.core.load_adapter(adapter)
    while not set(wanted) <= set(bench.core.stats().resident_adapters):
        bench.step()


@cache
def kv_bytes(base: Path) -> int:
    """KV memory for 24 blocks of 4 tokens: one sequence of MAX_LEN tokens and nothing to spare."""
    loaded = load_model(EngineConfig(str(base)), torch.device("cpu"), torch.float32)
    return 24 * 4 * sum(shape.bytes_per_token(4) for shape in loaded.structure.kv)


def measured_bytes(base: Path, adapters: Iterable[AdapterRef]) -> list[int]:
    """What each takes in the engine's memory."""
    bench = Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), **ROOMY, **TIGHT))
    held = [0]
    for adapter in adapters:
        read_all(bench, [adapter])
        held.append(bench.core.stats().adapter_bytes)
    assert bench.core.stats().adapter_evictions == 0
    return [after - before for before, after in pairwise(held)]
