"""Adapters of a head with a bias, tied to the embedding or not: each is what PEFT makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, PeftConfig, TrainableTokensConfig

from engine.families import linear_targets, save
from engine.oracle import Bench, Oracle, ref, save_tuned
from engine.test_parity import MAX_LEN, ROOMY, TIGHT, kv_bytes, prompts
from livery.engine.base import EngineConfig

TOKENS = [3, 9, 14, 50, 77]
ON_HEAD = {
    "pissa": {"target_modules": ["lm_head"], "init_lora_weights": "pissa"},
    "olora": {"target_modules": ["lm_head", "dense"], "init_lora_weights": "olora"},
}


def configs_of(family: str) -> dict[str, PeftConfig]:
    linear = linear_targets(family)[:1]
    configs: dict[str, PeftConfig] = {
        "tokens": LoraConfig(r=2, target_modules=linear, trainable_token_indices=TOKENS),
        "tokens-only": TrainableTokensConfig(token_indices=TOKENS),
        "head-rows": LoraConfig(r=2, target_modules=linear, trainable_token_indices={"lm_head": TOKENS}),
        "head-rows-only": TrainableTokensConfig(target_modules=["lm_head"], token_indices=TOKENS),
    }
    if family == "phi":  # a tied head is refused: its initialisation changes the embedding too
        configs["tokens-biased"] = LoraConfig(r=2, target_modules=linear, trainable_token_indices=TOKENS, bias="all")
        configs |= {name: LoraConfig(r=3, lora_alpha=5, **settings) for name, settings in ON_HEAD.items()}
    return configs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["phi", "phi-tied"])
def test_a_head_is_changed_as_peft_changes_it(family: str, tmp_path: Path) -> None:
    base = save(family, tmp_path)
    bench = Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), **ROOMY, **TIGHT))
    oracle = Oracle(base, MAX_LEN)
    (prompt,) = prompts(1, seed=5)
    folders = {
        name: save_tuned(base, tmp_path / name, seed, config)
        for seed, (name, config) in enumerate(configs_of(family).items())
    }
    for name, folder in folders.items():
        bench.add(name, prompt, ref(folder), max_tokens=3)
    for name, result in bench.run().items():
        oracle.assert_visible(prompt, folders[name])
        oracle.assert_same(prompt, result, folders[name], count=3)
