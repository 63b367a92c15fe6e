"""A base under an adapter that was extracted at full rank computes what the full fine-tune computes, in any company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.tuned_made import all_of_it, extracted, load, pair
from engine.families import VOCABULARY
from engine.oracle import Bench, Oracle, ref
from engine.test_parity import MAX_LEN, prompts
from livery.engine.base import EngineConfig
from livery_adapters.making.extract import Aim

SETTINGS = {"block_size": 4, "max_model_len": MAX_LEN, "threads": 1, "max_batch_tokens": 9}


@pytest.mark.parametrize("family", ["llama", "llama-dynamic-rope", "qwen2", "phi", "phi-tied", "gpt2", "gemma2"])
def test_the_engine_computes_the_tuned_model(family: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, family)
    extracted(base, tuned, tmp_path / "full")
    extracted(base, tuned, tmp_path / "small", Aim(rank=2))
    bench = Bench(EngineConfig(str(base), **SETTINGS))
    one, other, third = prompts(3, seed=3)
    bench.add("full", one, ref(tmp_path / "full"), 4)
    bench.add("small", other, ref(tmp_path / "small"), 4)
    bench.add("base", third, None, 4)
    results = bench.run()
    Oracle(tuned, MAX_LEN).assert_same(one, results["full"], None, 4)
    oracle = Oracle(base, MAX_LEN)
    oracle.assert_visible(other, tmp_path / "small")
    oracle.assert_same(other, results["small"], tmp_path / "small", 4)
    oracle.assert_same(third, results["base"], None, 4)


@pytest.mark.parametrize("family", ["llama", "llama-dynamic-rope"])
def test_the_engine_knows_the_tokens_that_were_added(family: str, tmp_path: Path) -> None:
    def grow(model: torch.nn.Module) -> None:
        torch.manual_seed(1)
        model.resize_token_embeddings(VOCABULARY + 2)  # type: ignore[operator]
        all_of_it(model)

    base, tuned = pair(tmp_path, family, grow)
    extracted(base, tuned, tmp_path / "out")
    bench = Bench(EngineConfig(str(base), **SETTINGS))
    prompt = [1, VOCABULARY + 1, 7, VOCABULARY, 30]
    bench.add("tuned", prompt, ref(tmp_path / "out", 2), 4)
    Oracle(tuned, MAX_LEN).assert_same(prompt, bench.run()["tuned"], None, 4)
    assert load(tuned).config.vocab_size == VOCABULARY + 2
