"""Adapters of any PEFT type with random weights that move the model, made, saved and run by PEFT itself."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig
from transformers.pytorch_utils import Conv1D

from engine.families import SMALL, VOCABULARY, configs
from livery_adapters.base_model import BaseModel, BaseShapes, ModuleShape

# Of the same kind as the engine's, with biases: for the types that PEFT can't put on GPT-2's Conv1D.
NEOX = GPTNeoXConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    use_parallel_residual=False,
)
TARGETS = {
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
    "neox": ["query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"],
}
TOKENS = torch.randint(0, SMALL["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(5))


@cache
def base(family: str) -> Any:
    """A tiny model with random weights and biases, embedding and head tied but in NeoX. Copy it to change it."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(NEOX if family == "neox" else configs()[family]).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.2)
            elif weight.dim() > 1:
                weight.normal_(std=0.15)
            else:
                weight.normal_(mean=1.0, std=0.1)
    return model


def shapes(family: str) -> BaseModel:
    """The same model as adapters see it."""
    modules: dict[str, ModuleShape] = {}
    plain: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, module in base(family).named_modules():
        if isinstance(module, nn.Linear):
            modules[path] = ModuleShape("linear", module.in_features, module.out_features, module.bias is not None)
        elif isinstance(module, Conv1D):
            modules[path] = ModuleShape("linear", *module.weight.shape, has_bias=True, input_first=True)
        elif isinstance(module, nn.Embedding):
            modules[path] = ModuleShape("embedding", module.num_embeddings, module.embedding_dim)
        elif own := {name: tuple(value.shape) for name, value in module.named_parameters(recurse=False)}:
            plain[path] = own
    tied = {"llama": {"lm_head": "model.embed_tokens"}, "gpt2": {"lm_head": "transformer.wte"}}.get(family, {})
    return BaseModel(f"tiny-{family}", "0" * 64, BaseShapes(modules, plain, {}, tied))


def make(directory: Path, family: str, config: PeftConfig, *, std: float = 0.3, seed: int = 0) -> Any:
    """Save an adapter whose trainable parameters all moved at random, and return PEFT's model as trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)  # what training leaves alone is drawn too
        model = get_peft_model(copy.deepcopy(base(family)), config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += torch.randn(weight.shape, generator=generator) * std
        model.save_pretrained(directory)
    return model


def load(directory: Path, family: str) -> Any:
    """The saved files as PEFT loads them onto the base: what every conversion is measured against."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(base(family)), directory).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference relative to the largest logit."""
    return float((one - other).abs().max() / other.abs().max())
