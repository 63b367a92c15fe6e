"""Adapters of tiny random models, made and saved by PEFT itself; and ways to damage them on disk."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from engine.families import configs
from livery_adapters.base_model import BaseModel, BaseShapes, ExpertsShape, ModuleShape
from livery_adapters.examine import CheckedFiles, check_headers, check_numbers
from livery_adapters.refusal import Limits
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

Q0 = "model.layers.0.self_attn.q_proj"
Q0_TENSORS = f"base_model.model.{Q0}.lora_"


@cache
def tiny_model(family: str = "llama") -> Any:
    """A family's tiny model with random weights. Shared between tests: copy it before changing it."""
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(configs()[family]).eval()


def check_directory(directory: Path, base: BaseModel, limits: Limits) -> CheckedFiles:
    """Every check of a directory that needs no model, its numbers included. Raises AdapterRefused."""
    files = check_headers(directory, base, limits)
    check_numbers(directory, files.manifest)
    return files


@cache
def tiny_base(family: str = "llama") -> BaseModel:
    """The same model as adapters see it."""
    return BaseModel(f"tiny-{family}", "0" * 64, shapes_of(tiny_model(family)))


def shapes_of(model: Any) -> BaseShapes:
    """What adapters may change of a transformers model, written down from its modules."""
    shapes = {}
    plain: dict[str, dict[str, tuple[int, ...]]] = {}
    experts = {}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear):
            shapes[path] = ModuleShape("linear", module.in_features, module.out_features, module.bias is not None)
        elif isinstance(module, Conv1D):
            shapes[path] = ModuleShape("linear", *module.weight.shape, has_bias=True, input_first=True)
        elif isinstance(module, nn.Embedding):
            shapes[path] = ModuleShape("embedding", module.num_embeddings, module.embedding_dim)
        elif "norm" in type(module).__name__.lower():
            plain[path] = {name: tuple(weight.shape) for name, weight in own.items()}
        elif hasattr(module, "is_transposed"):
            for name, weight in own.items():
                if weight.ndim == 3:
                    count, one, other = weight.shape
                    sizes = (one, other) if module.is_transposed else (other, one)
                    experts[f"{path}.{name}"] = ExpertsShape(count, *sizes, module.is_transposed)
    tied = {}
    if model.config.tie_word_embeddings:
        inputs = model.get_input_embeddings()
        tied["lm_head"] = next(path for path, module in model.named_modules() if module is inputs)
    return BaseShapes(shapes, plain, experts, tied)


class Weights:
    """The weights of a family's tiny model, as a conversion asks for them, in one dtype."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32, model: Any = None) -> None:
        self._model = tiny_model(family) if model is None else model
        self._modules = dict(self._model.named_modules())
        self._dtype = dtype
        self.shapes = tiny_base(family).shapes

    def weight(self, module: str) -> Tensor:
        weight: Tensor = self._modules[module].weight.detach().to(self._dtype)
        return weight.t() if isinstance(self._modules[module], Conv1D) else weight

    def bias(self, module: str) -> Tensor | None:
        bias = getattr(self._modules[module], "bias", None)
        return None if bias is None else bias.detach().to(self._dtype)

    def parameter(self, path: str) -> Tensor:
        parameter: Tensor = self._model.get_parameter(path).detach().to(self._dtype)
        return parameter


def make(
    directory: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    save: dict[str, Any] | None = None,
    **lora: Any,
) -> Any:
    """Save an adapter with random weights in `dtype` and return PEFT's model. `lora` goes to LoraConfig."""
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **lora})
    model = get_peft_model(copy.deepcopy(tiny_model(family)), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    model.to(dtype).save_pretrained(directory, **(save or {}))
    return model


def load(directory: Path, family: str = "llama") -> Any:
    """The saved adapter as PEFT loads it: not always what was trained, as saving sorts the patterns."""
    return PeftModel.from_pretrained(copy.deepcopy(tiny_model(family)), directory)


def lora_layers(model: Any) -> dict[str, Any]:
    """PEFT's own layers by the base's module paths."""
    return {path: layer for path, layer in model.base_model.model.named_modules() if isinstance(layer, LoraLayer)}


def edit_config(directory: Path, **fields: object) -> None:
    file = directory / CONFIG_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def edit_tensors(directory: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) drop tensors, keyed by full name."""
    file = directory / WEIGHTS_NAME
    tensors = {**load_file(file), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


def write_header(directory: Path, header: bytes, body: bytes = b"") -> None:
    """A weights file with this header, whatever it says."""
    (directory / WEIGHTS_NAME).write_bytes(len(header).to_bytes(8, "little") + header + body)
