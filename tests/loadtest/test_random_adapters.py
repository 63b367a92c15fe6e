"""Random adapters are real PEFT directories: PEFT loads them, and they change what the model says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from livery_loadtest.random_adapters import LINEAR_MODULES, RandomAdapters, _bfloat16, write_random_adapters


@pytest.fixture
def base(tmp_path: Path) -> Path:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_command_writes_them_and_says_where_and_how_large(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    command = [sys.executable, "-m", "livery_loadtest", "random-adapters", str(folder), "--model", str(base)]
    done = subprocess.run([*command, "--count", "3", "--rank", "2"], capture_output=True, text=True, check=True)
    assert "3 adapters of rank 2 are in" in done.stderr
    weights = {path.parent.name: path.stat().st_size for path in folder.glob("*/adapter_model.safetensors")}
    assert set(weights) == {"random-0", "random-1", "random-2"}
    told = RandomAdapters(base, rank=2).size
    assert all(told < size < 1.5 * told + 8192 for size in weights.values()), "what is told and a header"
    refused = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "has no module named q_proj" in refused.stderr


def test_peft_loads_them_and_each_changes_the_logits(base: Path, tmp_path: Path) -> None:
    folders = write_random_adapters(base, tmp_path / "adapters", count=2, rank=4)
    assert list(folders) == ["random-0", "random-1"]
    tokens = torch.tensor([[1, 5, 9, 13]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)(tokens).logits
        answers = []
        for folder in folders.values():
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
            answers.append(model(tokens).logits)
    for logits in answers:
        assert torch.isfinite(logits).all()
        assert (logits - plain).abs().max() > 1e-2 * plain.abs().max()
    assert not torch.equal(answers[0], answers[1])


def test_every_linear_module_is_a_target_in_bfloat16(base: Path, tmp_path: Path) -> None:
    (folder,) = write_random_adapters(base, tmp_path, count=1, rank=4).values()
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * len(LINEAR_MODULES)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    down = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{down}.lora_A.weight"].shape == (4, 64)
    assert tensors[f"{down}.lora_B.weight"].shape == (32, 4)
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())


def test_they_are_kept_when_they_are_there(base: Path, tmp_path: Path) -> None:
    (folder,) = write_random_adapters(base, tmp_path, count=1, rank=4).values()
    weights = folder / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    write_random_adapters(base, tmp_path, count=1, rank=4)
    assert weights.stat().st_mtime_ns == before
    write_random_adapters(base, tmp_path, count=1, rank=8)
    assert load_file(weights)["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (8, 32)


def test_rounding_is_that_of_torch() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    values[:4] = [0.0, 1.00390625, 1.01171875, -1e-30]  # two ties among them
    ours = torch.frombuffer(bytearray(_bfloat16(values)), dtype=torch.bfloat16)
    assert torch.equal(ours, torch.tensor(values, dtype=torch.float32).to(torch.bfloat16))


def test_a_base_without_such_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Llama-like"):
        write_random_adapters(tmp_path, tmp_path / "adapters", count=1, rank=4)
