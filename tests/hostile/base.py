"""The base model that the corpus is aimed at, and good adapters of every PEFT type to damage."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from livery_adapters.base_model import BaseModel, BaseShapes, ModuleShape
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

HIDDEN = 32
VOCABULARY = 49152  # that of the demo base, whose tokenizer goes with this model where it is served
NAME = "tiny-llama"
Files = tuple[bytes, bytes]  # configuration and weights


@cache
def model() -> Any:
    """Two layers with random weights, the head not tied to the embedding. Shared: copy it to change it."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    return made


@cache
def base() -> BaseModel:
    """The same model as adapters see it."""
    modules = {}
    plain = {}
    for path, module in model().named_modules():
        if isinstance(module, nn.Linear):
            modules[path] = ModuleShape("linear", module.in_features, module.out_features)
        elif isinstance(module, nn.Embedding):
            modules[path] = ModuleShape("embedding", module.num_embeddings, module.embedding_dim)
        elif own := {name: tuple(value.shape) for name, value in module.named_parameters(recurse=False)}:
            plain[path] = own
    return BaseModel(NAME, "0" * 64, BaseShapes(modules, plain, backbone="model", hidden_size=HIDDEN))


class Weights:
    """The base's weights as conversions ask for them."""

    @property
    def shapes(self) -> BaseShapes:
        return base().shapes

    def weight(self, module: str) -> Tensor:
        weight: Tensor = model().get_submodule(module).weight.detach()
        return weight

    def bias(self, module: str) -> Tensor | None:
        return None

    def parameter(self, path: str) -> Tensor:
        parameter: Tensor = model().get_parameter(path).detach()
        return parameter


_BOTH = ["q_proj", "v_proj"]
_TYPES: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=_BOTH),
    "embedding": LoraConfig(r=4, target_modules=["embed_tokens"]),
    "dora": LoraConfig(r=4, target_modules=_BOTH, use_dora=True),
    "alora": LoraConfig(r=4, target_modules=_BOTH, task_type="CAUSAL_LM", alora_invocation_tokens=[7, 8]),
    "tokens beside lora": LoraConfig(r=4, target_modules=_BOTH, trainable_token_indices=[3, 5]),
    "saved norm": LoraConfig(r=4, target_modules=_BOTH, modules_to_save=["model.norm"]),
    "adalora": AdaLoraConfig(init_r=4, target_r=4, total_step=10, target_modules=_BOTH),
    "loha": LoHaConfig(r=3, target_modules=_BOTH),
    "lokr": LoKrConfig(r=2, decompose_both=True, decompose_factor=4, target_modules=_BOTH),
    "vera": VeraConfig(r=4, target_modules=["q_proj"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": OFTConfig(oft_block_size=8, r=0, target_modules=_BOTH),
    "boft": BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules=_BOTH),
    "tokens": TrainableTokensConfig(token_indices=[3, 5], target_modules=["embed_tokens"]),
}


@cache
def good(kind: str = "lora") -> Files:
    """The two files of an adapter that PEFT saved, every trainable weight moved at random."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        adapted = get_peft_model(copy.deepcopy(model()), copy.deepcopy(_TYPES[kind])).eval()
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight += torch.randn(weight.shape, generator=generator) * 0.1
        adapted.save_pretrained(folder)
        config: dict[str, object] = json.loads((Path(folder) / CONFIG_NAME).read_text())
        config["base_model_name_or_path"] = f"somebody/{NAME}"
        return json.dumps(config, indent=2).encode(), (Path(folder) / WEIGHTS_NAME).read_bytes()


def kinds() -> list[str]:
    """Everything that `good` can make."""
    return list(_TYPES)
