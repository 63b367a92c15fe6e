"""Steps launched before the tokens of the ones before them are looked at: nobody may notice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from peft import LoraConfig

from engine.families import save
from engine.oracle import Bench, Oracle, ref, save_adapter
from engine.test_parity import MAX_LEN, kv_bytes, prompts
from livery.engine import pending, sampler
from livery.engine.base import EngineConfig
from livery.engine.runner import ModelRunner

SIZES = {"block_size": 4, "max_batch_tokens": 24, "max_running": 5, "max_model_len": MAX_LEN, "threads": 1}
FIELDS = [
    {},
    {"temperature": 0.9, "seed": 1},
    {"temperature": 1.4, "top_k": 9, "seed": 2, "min_tokens": 6, "ignore_eos": False},
    {"temperature": 0.7, "min_p": 0.1, "seed": 3, "stop_token_ids": tuple(range(30, 60)), "ignore_eos": False},
    {"min_tokens": 5, "stop_token_ids": tuple(range(50)), "ignore_eos": False},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    return save_adapter(base, tmp_path_factory.mktemp("adapters") / "r4", 1, config)


def bench_of(base: Path, overlap: str, memory: int = 2) -> Bench:
    sizes = {**SIZES, "adapter_memory_bytes": 1 << 20, "kv_memory_bytes": memory * kv_bytes(base)}
    return Bench(EngineConfig(str(base), overlap=overlap, **sizes))


def launched_ahead(runner: ModelRunner) -> list[int]:
    """Rows of every step that was launched on the tokens of another, as they come."""
    rows: list[int] = []
    launch = runner.launch

    def counted(plan: pending.StepPlan, after: pending.PendingStep | None = None) -> pending.PendingStep:
        if after is not None:
            rows.append(len(plan.slices))
        return launch(plan, after)

    runner.launch = counted  # type: ignore[method-assign]
    return rows


def answers(bench: Bench, adapter: Path, count: int = 12) -> dict[str, tuple[list[int], str | None]]:
    for index, prompt in enumerate(prompts(count, seed=11)):
        chosen = ref(adapter) if index % 2 else None
        bench.add(str(index), prompt, chosen, max_tokens=1 + 3 * index, **FIELDS[index % len(FIELDS)])
    return {name: (result.tokens, result.finish) for name, result in bench.run().items()}


@pytest.mark.parametrize("memory", [1, 2])
@pytest.mark.parametrize("likeliest", [3, sampler.LIKELIEST])
def test_answers_are_the_same(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, likeliest: int, memory: int
) -> None:
    """Also where blocks run short, and where draws fall beyond the likeliest tokens, which the host alone settles."""
    one_by_one = answers(bench_of(base, "off"), adapter)
    assert {finish for _, finish in one_by_one.values()} == {"stop", "length"}
    monkeypatch.setattr(sampler, "LIKELIEST", likeliest)
    bench = bench_of(base, "on", memory)
    ahead = launched_ahead(bench.runner)
    assert answers(bench, adapter) == one_by_one
    assert len(ahead) > 15 and max(ahead) > 2
    stats = bench.core.stats()
    assert stats.blocks_free == stats.blocks_total


def test_every_logit_is_what_the_request_alone_gives(base: Path, adapter: Path) -> None:
    bench, oracle = bench_of(base, "on"), Oracle(base, MAX_LEN)
    asked = prompts(6, seed=5)
    for index, prompt in enumerate(asked):
        bench.add(str(index), prompt, ref(adapter) if index % 2 else None, max_tokens=9)
    results = bench.run()
    for index, prompt in enumerate(asked):
        oracle.assert_same(prompt, results[str(index)], adapter if index % 2 else None, count=9)


@pytest.mark.parametrize("seed", range(4))
def test_requests_may_come_and_go_at_any_time(base: Path, adapter: Path, seed: int) -> None:
    """Aborted in flight, started anew under the same name, arriving between a launch and its result."""
    chance = random.Random(seed)
    alone = bench_of(base, "off")
    asked = prompts(16, seed=seed)
    for index, prompt in enumerate(asked):
        alone.add(str(index), prompt, ref(adapter) if index % 3 else None, max_tokens=20)
    expected = {name: result.tokens for name, result in alone.run().items()}
    bench = bench_of(base, "on", memory=1 + seed % 2)  # short of blocks, or not
    ahead = launched_ahead(bench.runner)
    waiting, aborted = list(range(16)), set()
    while waiting or bench.core.has_work:
        if waiting and chance.random() < 0.4:
            index = waiting.pop()
            bench.add(str(index), asked[index], ref(adapter) if index % 3 else None, max_tokens=20)
        if chance.random() < 0.1:
            index = chance.randrange(16)
            if bench.core.abort(str(index)):
                aborted.add(index)
                if chance.random() < 0.5:
                    aborted.discard(index)
                    bench.add(str(index), asked[index], ref(adapter) if index % 3 else None, max_tokens=20)
        bench.step()
        bench.core.check_invariants()
    assert len(ahead) > 2
    for name, result in bench.results.items():
        if int(name) not in aborted:
            assert result.tokens == expected[name], name
