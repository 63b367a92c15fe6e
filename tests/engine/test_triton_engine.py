"""The whole engine on the kernels for CUDA, in Triton's interpreter, against PEFT and transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

import engine.triton_under_test  # noqa: F401 (before anything of Triton)
from engine.families import save
from engine.oracle import Bench, Oracle, ref, save_adapter
from engine.test_parity import MAX_LEN, ROOMY, kv_bytes, lora_mix, prompts
from livery.engine.base import EngineConfig

FAMILY = "llama"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(FAMILY, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    mix = lora_mix(FAMILY).items()
    return [save_adapter(base, folder / name, seed, config) for seed, (name, config) in enumerate(mix)]


def test_a_mixed_batch_equals_each_row_alone(base: Path, adapters: list[Path]) -> None:
    # 20 tokens a step over contexts in blocks of 4: chunked prompts beside decoding rows.
    tight = {"block_size": 4, "max_batch_tokens": 20, "max_running": 8, "max_model_len": MAX_LEN, "threads": 1}
    bench = Bench(EngineConfig(str(base), kernels="triton", kv_memory_bytes=2 * kv_bytes(base), **ROOMY, **tight))
    assert bench.runner.info.kernels == "triton"
    oracle = Oracle(base, MAX_LEN)
    choices: list[Path | None] = [None, *adapters]
    requests = list(enumerate(prompts(len(choices), seed=3)))
    for index, prompt in requests:
        adapter = choices[index % len(choices)]
        bench.add(str(index), prompt, ref(adapter) if adapter else None, max_tokens=5)
    results = bench.run()
    for index, prompt in requests:
        adapter = choices[index % len(choices)]
        if adapter is not None:
            oracle.assert_visible(prompt, adapter)
        oracle.assert_same(prompt, results[str(index)], adapter, count=5)
