"""A base held in few bits: exactly where its numbers allow, rounded where asked, and under adapters either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from engine.families import VOCABULARY, linear_targets, save
from engine.kernels_under_test import KERNELS, only_native
from engine.oracle import Bench, Oracle, ref, save_adapter
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.runner import ModelRunner
from livery.engine.threads import choose_threads, fewest
from livery.models import resolve_model

MAX_LEN = 96
SMALL: dict[str, Any] = {
    "block_size": 4,
    "max_batch_tokens": 7,
    "max_model_len": MAX_LEN,
    "kv_memory_bytes": 1 << 21,
    "adapter_memory_bytes": 1 << 20,
    "threads": 1,
}
PROMPTS = [[3 + (7 * i * j + i) % (VOCABULARY - 3) for j in range(9 + i)] for i in range(4)]


def written_out(base: Path, runner: ModelRunner, folder: Path) -> Path:
    """The base saved with the numbers that a runner serves instead of its own."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for path, shape in runner.info.shapes.modules.items():
        if shape.kind == "linear":
            module = model.get_submodule(path)
            served = runner.weights.weight(path)
            module.weight.data = (served.t() if isinstance(module, Conv1D) else served).contiguous()
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def run(config: EngineConfig, adapter: Path) -> tuple[ModelRunner, Bench]:
    bench = Bench(config)
    for index, prompt in enumerate(PROMPTS):
        bench.add(str(index), prompt, ref(adapter) if index % 2 else None, max_tokens=8)
    bench.run()
    return bench.runner, bench


@pytest.mark.parametrize(
    ("family", "weights", "kernels"),
    [
        ("llama", "int4", "auto"),
        ("llama", "int8", "torch"),
        ("gpt2", "int4", "auto"),
        ("gpt2", "bf16", "auto"),
        ("qwen3-moe", "int8", "auto"),
    ],
)
def test_a_rounded_base_under_adapters_is_what_peft_makes_of_the_rounded_numbers(
    tmp_path: Path, family: str, weights: Any, kernels: Any
) -> None:
    base = save(family, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", 1, LoraConfig(r=4, target_modules=linear_targets(family)))
    runner, bench = run(EngineConfig(str(base), weights=weights, kernels=kernels, **SMALL), adapter)
    rounded = written_out(base, runner, tmp_path / "rounded")
    oracle = Oracle(rounded, MAX_LEN)
    for index, prompt in enumerate(PROMPTS):
        oracle.assert_same(prompt, bench.results[str(index)], adapter if index % 2 else None, count=8)
    assert weights in runner.info.weights and "relative error" in runner.info.weights
    if kernels == "auto" and KERNELS[0].name == "native":  # what was rounded is found again, and serves the same bits
        again, second = run(EngineConfig(str(rounded), **SMALL), adapter)
        assert weights in again.info.weights and "exact" in again.info.weights
        for name, result in bench.results.items():
            for at, logits in result.logits.items():
                found = second.results[name].logits[at]
                # Routed experts are torch's, whose bits depend on where in memory a tensor lies.
                assert torch.equal(logits, found) or (
                    runner.info.shapes.experts and float((logits - found).abs().max()) < 1e-5
                )


@only_native
def test_auto_serves_the_bits_that_fp32_serves(tmp_path: Path) -> None:
    base = save("llama", tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.model.layers.requires_grad_(False)
    for weight in model.model.layers[0].parameters():
        weight.data = weight.data.bfloat16().float()
    model.save_pretrained(tmp_path / "short")
    adapter = save_adapter(base, tmp_path / "adapter", 1, LoraConfig(r=4, target_modules=linear_targets("llama")))
    auto, first = run(EngineConfig(str(tmp_path / "short"), **SMALL), adapter)
    fp32, second = run(EngineConfig(str(tmp_path / "short"), weights="fp32", **SMALL), adapter)
    assert "bf16 x 4" in auto.info.weights and "fp32 x" in auto.info.weights and "exact" in auto.info.weights
    assert "bf16" not in fp32.info.weights and fp32.info.weight_bytes > auto.info.weight_bytes
    for name, result in first.results.items():
        assert all(torch.equal(logits, second.results[name].logits[at]) for at, logits in result.logits.items())


@only_native
def test_the_demo_base_is_held_in_the_bits_of_its_file() -> None:
    path = resolve_model("smollm2-135m-instruct").path
    with safe_open(path / "model.safetensors", "pt") as file:
        layer = "model.layers.17.self_attn"
        qkv = torch.cat([file.get_tensor(f"{layer}.{name}_proj.weight").float() for name in "qkv"])
        table = file.get_slice("model.embed_tokens.weight")[:2000].float()
    for weight, layout in ((qkv, "int4"), (table, "int8")):
        held = KERNELS[0].pack(weight, "exact")
        assert held.layout == layout and torch.equal(held.dense(), weight)


def test_few_bits_are_refused_where_nothing_widens_them(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="--weights int4 is for CPUs"):
        ModelRunner(EngineConfig(str(save("llama", tmp_path)), weights="int4", dtype="bfloat16"), lambda _: None)


def test_of_equally_fast_numbers_of_threads_the_fewest_are_taken() -> None:
    assert fewest({8: 1.0, 4: 1.05, 2: 1.2, 1: 2.0}) == 4
    assert fewest({8: 1.0, 4: 0.7, 2: 0.6, 1: 0.9}) == 2
    before = torch.get_num_threads()
    try:
        chosen, why = choose_threads(4, [lambda: None])
        assert chosen == torch.get_num_threads() and f"{chosen}: " in why
        assert choose_threads(1, []) == (1, "one core")
    finally:
        torch.set_num_threads(before)
