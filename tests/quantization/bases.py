"""Tiny random models wide enough for every library's blocks, saved as users save theirs."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen2Config

from engine.families import SMALL, VOCABULARY

WIDE = SMALL | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def configs() -> dict[str, PreTrainedConfig]:
    """With and without biases, a head of its own or tied, and GPT-2's transposed weights."""
    return {
        "llama": LlamaConfig(**WIDE, tie_word_embeddings=True),
        "qwen2": Qwen2Config(**WIDE),
        "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256, eos_token_id=2),
    }


def save(family: str, folder: Path) -> Path:
    """A family's tiny model with weights large enough that logits are well apart; biases aren't zero."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(configs()[family])
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.12)
        else:
            weight.data += torch.randn_like(weight) * 0.1
    path = folder / family
    model.save_pretrained(path)
    return path
