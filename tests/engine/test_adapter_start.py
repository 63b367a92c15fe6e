"""Activated LoRA: tokens before a position run on the base, later ones under the adapter, however they are chunked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig

from engine.families import LLAMA_LINEAR, save
from engine.oracle import Bench, Oracle, ref, save_adapter
from engine.test_parity import MAX_LEN, ROOMY, TIGHT, kv_bytes, prompts
from livery.engine.base import EngineConfig, RequestRefused

INVOCATION = [95, 96, 95]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(r=4, target_modules=[*LLAMA_LINEAR, "lm_head"], task_type="CAUSAL_LM")
    return save_adapter(base, tmp_path_factory.mktemp("adapters") / "lora", 3, config)


@pytest.fixture(scope="module")
def activated(adapter: Path) -> Path:
    """The same weights for PEFT to activate by the invocation tokens."""
    folder = adapter.with_name("activated")
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"alora_invocation_tokens": INVOCATION}))
    return folder


def bench_of(base: Path, kernels: str = "auto") -> Bench:
    return Bench(EngineConfig(str(base), kernels=kernels, kv_memory_bytes=kv_bytes(base), **ROOMY, **TIGHT))


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_each_token_runs_on_its_side_of_the_start(base: Path, adapter: Path, activated: Path, kernels: str) -> None:
    bench, oracle = bench_of(base, kernels), Oracle(base, MAX_LEN)
    asked = []
    for index, prompt in enumerate(prompts(12, seed=21)):
        start = len(prompt) * (index % 4) // 4  # of every prompt another part, from all of it to a quarter
        asked.append((prompt[:start] + INVOCATION + prompt[start:], start))
    for index, (prompt, start) in enumerate(asked):
        bench.add(f"activated{index}", prompt, ref(adapter), max_tokens=12, adapter_start=start)
        bench.add(f"whole{index}", prompt, ref(adapter), max_tokens=12)
        bench.add(f"late{index}", prompt, ref(adapter), max_tokens=12, adapter_start=MAX_LEN)
        bench.add(f"next{index}", prompt, ref(adapter), max_tokens=1, adapter_start=len(prompt))
    results = bench.run()
    assert bench.core.stats().preemptions > 0, "the test means to force preemption"
    for index, (prompt, start) in enumerate(asked):
        oracle.assert_visible(prompt, activated)
        oracle.assert_same(prompt, results[f"activated{index}"], activated, count=12)
        oracle.assert_same(prompt, results[f"whole{index}"], adapter, count=12)
        oracle.assert_same(prompt, results[f"late{index}"], None, count=12)
        oracle.assert_same(prompt, results[f"next{index}"], None, count=1)
        if start > 2:
            first = results[f"activated{index}"].logits[len(prompt) - 1]
            assert not first.equal(results[f"whole{index}"].logits[len(prompt) - 1])


def test_a_start_before_the_first_token_is_refused(base: Path, adapter: Path) -> None:
    with pytest.raises(RequestRefused, match="-1"):
        bench_of(base).add("a", [5, 6], ref(adapter), max_tokens=1, adapter_start=-1)
