"""Adapters of many PEFT types, mixed in one batch from their files: each row is as PEFT computes it alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    ShiraConfig,
    TrainableTokensConfig,
    VeraConfig,
)

from engine.families import linear_targets, save
from engine.oracle import Bench, Oracle, ref, save_tuned
from engine.test_parity import MAX_LEN, TIGHT, kv_bytes, prompts
from livery.engine.base import AdapterPart, AdapterRef, EngineConfig

TOKENS = [3, 9, 14, 50, 77]


def on_any_model(linear: list[str]) -> dict[str, PeftConfig]:
    """What PEFT can put on GPT-2's Conv1D as well."""
    return {
        "dora": LoraConfig(r=3, use_dora=True, target_modules=linear),
        "biased": LoraConfig(r=3, bias="all", target_modules=linear[:2]),
        "ia3": IA3Config(target_modules=linear, feedforward_modules=linear[-1:]),
        "vera": VeraConfig(r=6, target_modules=linear[-1:], d_initial=0.5, projection_prng_key=3),
        "tokens": TrainableTokensConfig(token_indices=TOKENS),
        "lora-tokens": LoraConfig(r=2, target_modules=linear[:1], trainable_token_indices=TOKENS),
    }


def on_linear(linear: list[str]) -> dict[str, PeftConfig]:
    return {
        "lora-bias": LoraConfig(r=3, lora_bias=True, target_modules=linear),
        "adalora": AdaLoraConfig(r=3, init_r=3, target_r=2, target_modules=linear, total_step=10),
        "loha": LoHaConfig(r=3, alpha=2, target_modules=linear),
        "lokr": LoKrConfig(r=2, alpha=2, decompose_factor=4, decompose_both=True, target_modules=linear),
        "oft": OFTConfig(r=0, oft_block_size=8, target_modules=linear),
        "boft": BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules=linear[:3]),
        "hra": HRAConfig(r=4, target_modules=linear[:2]),
        "shira": ShiraConfig(r=4, target_modules=linear[:2], random_seed=5),  # factorised at full rank: exact again
        "head": LoraConfig(r=2, target_modules=linear[:1], modules_to_save=["lm_head"]),
        "norms": LoraConfig(r=2, target_modules=linear[:1], modules_to_save=["input_layernorm", "norm"]),
        "norms-only": LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"]),
    }


def configs_of(family: str) -> dict[str, PeftConfig]:
    linear = linear_targets(family)
    if family == "gpt2":
        return on_any_model(linear)
    if family == "qwen3-moe":
        both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        return {
            "experts": LoraConfig(r=2, target_modules=linear, target_parameters=both),
            "experts-up": LoraConfig(r=2, target_modules=[], target_parameters=both[:1]),
            "dora": LoraConfig(r=3, use_dora=True, target_modules=linear),
        }
    return on_any_model(linear) | on_linear(linear)


def full_rank(folder: Path) -> AdapterRef:
    digest = ref(folder).digest
    return AdapterRef(digest, (AdapterPart(digest, str(folder), approximate=32),))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "qwen3-moe"])
def test_all_types_in_one_batch(family: str, tmp_path: Path) -> None:
    base = save(family, tmp_path)
    adapters = []
    for seed, (name, config) in enumerate(configs_of(family).items()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapters.append(save_tuned(base, tmp_path / name, seed, config))
    tight = TIGHT | {"max_batch_tokens": 13, "max_running": 8}
    memory = {"kv_memory_bytes": 2 * kv_bytes(base), "adapter_memory_bytes": 64 << 20}
    bench, oracle = Bench(EngineConfig(str(base), **memory, **tight)), Oracle(base, MAX_LEN)
    choices = [None, *adapters]
    requests = list(enumerate(prompts(2 * len(choices), seed=31)))
    for index, prompt in requests:
        choice = choices[index % len(choices)]
        bench.add(str(index), prompt, full_rank(choice) if choice else None, max_tokens=6)
    results = bench.run()
    for index, prompt in requests:
        choice = choices[index % len(choices)]
        if choice is not None:
            oracle.assert_visible(prompt, choice)
        oracle.assert_same(prompt, results[str(index)], choice, count=6)
