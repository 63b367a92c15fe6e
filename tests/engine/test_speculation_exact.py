"""With real models: what speculation changes is the number of steps, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from engine.families import LLAMA_LINEAR, VOCABULARY, save
from engine.oracle import Bench, Recorded, ref, save_adapter
from livery.engine.base import EngineConfig, EngineStats

MAX_LEN = 96
LENGTH = 48
ROOM = {"block_size": 4, "kv_memory_bytes": 1 << 18, "adapter_memory_bytes": 1 << 20, "max_model_len": MAX_LEN}
STARTS = [7, 0, 15, 0]  # of each prompt's adapters: inside the prompt, at its begin, inside the answer
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_p": 0.9}


@pytest.fixture(scope="module", params=["llama", "mistral"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model sure enough of itself that its samples repeat themselves now and then."""
    path = save(request.param, tmp_path_factory.mktemp("models"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] *= 3
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    configs = {
        "lora": LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA_LINEAR),
        "dora": LoraConfig(r=3, lora_alpha=3, target_modules=[*LLAMA_LINEAR, "lm_head"], use_dora=True),
    }
    return {
        name: save_adapter(base, folder / name, seed, config) for seed, (name, config) in enumerate(configs.items())
    }


def prompts() -> list[list[int]]:
    """Half of them repeat themselves, half don't."""
    rng = random.Random(5)
    pattern = [rng.randrange(3, VOCABULARY) for _ in range(6)]
    return [pattern * 3, [rng.randrange(3, VOCABULARY) for _ in range(17)], [9, 8] * 5, [4]]


def run(
    base: Path, adapters: dict[str, Path], sampling: dict[str, float], **config: Any
) -> tuple[dict[str, Recorded], EngineStats]:
    """Every prompt on the base and each adapter, all in one batch."""
    bench = Bench(EngineConfig(str(base), max_running=3, threads=1, **ROOM, **config))
    for number, prompt in enumerate(prompts()):
        for name, folder in (("base", None), *adapters.items()):
            adapter = ref(folder) if folder else None
            start = STARTS[number] if folder else 0  # as an activated adapter
            bench.add(f"{name}-{number}", prompt, adapter, LENGTH, adapter_start=start, seed=number, **sampling)
    return bench.run(), bench.core.stats()


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_are_those_without_speculation(
    base: Path, adapters: dict[str, Path], sampling: dict[str, float], kernels: Literal["auto", "torch"]
) -> None:
    plain, before = run(base, adapters, sampling, kernels=kernels, speculate=0)
    drafted, stats = run(base, adapters, sampling, kernels=kernels, speculate=6)
    assert before.drafted_tokens == 0
    assert 0 < stats.accepted_tokens < stats.drafted_tokens, "right drafts and wrong ones are both needed here"
    assert stats.generated_tokens == before.generated_tokens
    for name, result in plain.items():
        assert (drafted[name].tokens, drafted[name].finish) == (result.tokens, "length"), name
