"""With what the prefix cache finds every logit is still what PEFT and transformers give for the whole request alone."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from engine.families import LLAMA_LINEAR, VOCABULARY, save
from engine.oracle import Bench, Oracle, ref, save_adapter
from engine.test_parity import ROOMY, TIGHT, kv_bytes
from livery.engine.base import EngineConfig

MAX_LEN = 96
INVOCATION = [95, 96, 95]
SYSTEM = [random.Random(1).randrange(3, 90) for _ in range(18)]  # four blocks of 4 and a half


@dataclass(frozen=True)
class Livery:
    """What a request runs under: the engine's folder and the oracle's; `activated` from its invocation tokens on."""

    engine: Path | None
    oracle: Path | None
    activated: bool = False


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(str(request.param), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def liveries(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Livery]:
    folder = tmp_path_factory.mktemp("adapters")
    lora = save_adapter(base, folder / "lora", 1, LoraConfig(r=4, target_modules=LLAMA_LINEAR))
    dora = save_adapter(base, folder / "dora", 2, LoraConfig(r=3, target_modules=LLAMA_LINEAR, use_dora=True))
    config = LoraConfig(r=4, target_modules=LLAMA_LINEAR, task_type="CAUSAL_LM")
    plain = save_adapter(base, folder / "plain", 3, config)
    alora = folder / "alora"
    shutil.copytree(plain, alora)
    saved = json.loads((alora / "adapter_config.json").read_text())
    (alora / "adapter_config.json").write_text(json.dumps(saved | {"alora_invocation_tokens": INVOCATION}))
    return {
        "base": Livery(None, None),
        "lora": Livery(lora, lora),
        "dora": Livery(dora, dora),
        "alora": Livery(plain, alora, activated=True),
    }


class Asked:
    """Requests put to one engine, checked against the oracle at the end."""

    def __init__(self, base: Path, liveries: dict[str, Livery], count: int = 6, **config: Any) -> None:
        self.bench = Bench(EngineConfig(str(base), **{**ROOMY, **TIGHT, **config}))
        self.liveries = liveries
        self.count = count  # tokens of each answer
        self.prompts: dict[str, tuple[str, list[int]]] = {}

    def add(self, name: str, livery: str, prompt: list[int]) -> None:
        engine, activated = self.liveries[livery].engine, self.liveries[livery].activated
        start = next(at for at in range(len(prompt), -1, -1) if prompt[at : at + 3] == INVOCATION) if activated else 0
        self.bench.add(name, prompt, ref(engine) if engine else None, self.count, adapter_start=start)
        self.prompts[name] = (livery, prompt)

    def run(self) -> dict[str, int]:
        """Run what was added; returns the cached tokens of all requests so far."""
        return {name: result.cached for name, result in self.bench.run().items()}

    def check(self, oracle: Oracle) -> None:
        for name, (livery, prompt) in self.prompts.items():
            folder = self.liveries[livery].oracle
            if folder is not None:
                oracle.assert_visible(prompt, folder)
            oracle.assert_same(prompt, self.bench.results[name], folder, self.count)


def tail(seed: int, *, activated: bool) -> list[int]:
    rng = random.Random(seed)
    return [*(INVOCATION if activated else []), *(rng.randrange(3, 90) for _ in range(rng.randrange(1, 9)))]


def test_turns_of_chats_under_every_kind_of_livery(base: Path, liveries: dict[str, Livery]) -> None:
    asked = Asked(base, liveries, kv_memory_bytes=8 * kv_bytes(base))
    for index, (name, livery) in enumerate(liveries.items()):
        asked.add(f"{name}1", name, SYSTEM + tail(index, activated=livery.activated))
    first = asked.run()
    assert not first["base1"] and not first["lora1"] and not first["dora1"]
    for index, (name, livery) in enumerate(liveries.items()):
        asked.add(f"{name}2", name, SYSTEM + tail(10 + index, activated=livery.activated))
    second = asked.run()
    # What activates at the same place after the same tokens shares the block with the beginning of its invocation.
    assert {name: second[f"{name}2"] for name in liveries} == {"base": 16, "lora": 16, "dora": 16, "alora": 20}
    for index, (name, livery) in enumerate(liveries.items()):
        history = asked.prompts[f"{name}1"][1] + asked.bench.results[f"{name}1"].tokens
        asked.add(f"{name}3", name, history + tail(20 + index, activated=livery.activated))
        if not livery.activated:
            asked.add(f"{name}4", name, history)
    third = asked.run()
    for name, livery in liveries.items():
        history = asked.prompts[f"{name}1"][1] + asked.bench.results[f"{name}1"].tokens
        # A second activation starts later: what the first one computed under the adapter is the base's now.
        assert third[f"{name}3"] == (16 if livery.activated else (len(history) - 1) // 4 * 4)
    asked.check(Oracle(base, MAX_LEN))


def test_an_activated_adapter_takes_over_what_the_base_has_read(base: Path, liveries: dict[str, Livery]) -> None:
    asked = Asked(base, liveries, kv_memory_bytes=8 * kv_bytes(base))
    prompt = [*SYSTEM, *INVOCATION, 5, 6, 7]
    asked.add("base", "base", prompt)
    asked.run()
    asked.add("alora", "alora", prompt)
    asked.add("again", "alora", prompt)
    cached = asked.run()
    assert (cached["base"], cached["alora"], cached["again"]) == (0, 16, 20), "the straddling block is its own"
    asked.check(Oracle(base, MAX_LEN))


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_few_blocks_small_steps_and_the_same_tokens_without_a_cache(
    base: Path, liveries: dict[str, Livery], kernels: str
) -> None:
    """Preempted, evicted, waiting for each other and matched in the middle of it all."""
    tokens: dict[bool, dict[str, list[int]]] = {}
    for prefix_cache in (True, False):
        few = kv_bytes(base)  # 24 blocks
        asked = Asked(base, liveries, 18, kv_memory_bytes=few, kernels=kernels, prefix_cache=prefix_cache)
        for wave in range(2):
            for number in range(16):
                name = list(liveries)[number % len(liveries)]
                cut = random.Random(number).choice([4, 8, 12, 16, 17])  # whole blocks among them
                prompt = SYSTEM[:cut] + tail(wave * 100 + number % 6, activated=liveries[name].activated)
                asked.add(f"{wave}.{number}", name, prompt)
            asked.run()
        stats = asked.bench.core.stats()
        assert stats.blocks_free == stats.blocks_total
        assert stats.preemptions > 0
        assert (stats.prefix_hits > 0) == (stats.prefix_evictions > 0) == (stats.blocks_cached > 0) == prefix_cache
        asked.check(Oracle(base, MAX_LEN))
        tokens[prefix_cache] = {name: result.tokens for name, result in asked.bench.results.items()}
    assert tokens[True] == tokens[False]
    assert all(max(ids) < VOCABULARY for ids in tokens[True].values())
