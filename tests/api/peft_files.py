"""Adapters for the server of these tests, saved by PEFT itself from a model of the matching shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM


def make_adapter(directory: Path, *, seed: int = 0, rank: int = 2, hidden: int = 16, **fields: Any) -> Path:
    """A LoRA adapter with random weights over a two-layer model; its modules are `live_server.MODULES`.

    `fields` go to LoraConfig.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=hidden,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
    )
    usual = {"r": rank, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    lora = LoraConfig(**{**usual, "init_lora_weights": False, **fields})
    get_peft_model(LlamaForCausalLM(config), lora).save_pretrained(directory)
    return directory


def damage_config(directory: Path, **fields: object) -> Path:
    """Change fields of adapter_config.json."""
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return directory


def damage_weights(directory: Path) -> Path:
    """Put a NaN into the first tensor."""
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    return directory
