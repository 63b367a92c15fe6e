"""Tiny random models of each family the engine claims, saved as users save theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def configs() -> dict[str, PreTrainedConfig]:
    """One configuration per family, with the traits that make it different switched on."""
    mixed = ["sliding_attention", "full_attention", "sliding_attention"]
    return {
        "llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
        "llama-dynamic-rope": LlamaConfig(**SMALL, rope_parameters=DYNAMIC),
        "qwen2": Qwen2Config(
            **SMALL,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
        "qwen3": Qwen3Config(**SMALL),
        "mistral": MistralConfig(**SMALL, sliding_window=8),
        "gemma2": Gemma2Config(**SMALL, sliding_window=8, query_pre_attn_scalar=8, layer_types=mixed),
        "gemma3": Gemma3TextConfig(**SMALL, sliding_window=8, query_pre_attn_scalar=8, layer_types=mixed),
        "phi3": Phi3Config(**SMALL, rope_parameters=LONGROPE, original_max_position_embeddings=32),
        "phi": PhiConfig(**SMALL),  # a head with a bias
        "phi-tied": PhiConfig(**SMALL, tie_word_embeddings=True),
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
        ),
        "qwen3-moe": Qwen3MoeConfig(
            **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1
        ),
    }


def save(family: str, folder: Path) -> Path:
    """Build a family's tiny model with weights large enough that logits are well apart, and save it.

    Biases are not zero and norms not one, or what happens to them would not show.
    """
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(configs()[family])
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
        else:
            weight.data += torch.randn_like(weight) * 0.1
    path = folder / family
    model.save_pretrained(path)
    return path


FUSED = ("llama", "llama-dynamic-rope", "qwen2", "qwen3", "mistral")  # families that the fused decoder computes
# Whose forward and which kernels: by default, in plain torch, and by the model's own forward.
PATHS: dict[str, dict[str, str]] = {"auto": {}, "torch": {"kernels": "torch"}, "own": {"decoder": "transformers"}}

PHI_LINEAR = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
ALL_LINEAR = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi": PHI_LINEAR,
    "phi-tied": PHI_LINEAR,
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "qwen3-moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def linear_targets(family: str) -> list[str]:
    """The linear modules of a family's layers, as an adapter names them."""
    return ALL_LINEAR.get(family, LLAMA_LINEAR)


def embedding_name(family: str) -> str:
    return "wte" if family == "gpt2" else "embed_tokens"
