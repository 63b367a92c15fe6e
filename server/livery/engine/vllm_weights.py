"""The base's weights as conversions of adapters ask for them, read from its files: vLLM tells nobody its own."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from livery.engine.base import ModelRefused
from livery.engine.model import base_shapes
from livery.engine.quantization import checkpoint_method
from livery_adapters.base_model import BaseShapes, ModuleShape
from livery_adapters.model_files import indexed, weight_files
from livery_adapters.refusal import AdapterRefused

log = logging.getLogger(__name__)


def shapes_of(model: str) -> BaseShapes:
    """What of a model adapters may change, without its weights.

    Of one that our own engine couldn't serve, every linear module and embedding of its language model by name: which
    of them vLLM applies LoRA to shows when an adapter asks for it.
    """
    try:
        return base_shapes(model)
    except ModelRefused as refused:
        log.info("the structure of %s is taken as its modules say: %s", model, refused)
    config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    modules: dict[str, ModuleShape] = {}
    for path, module in language.named_modules():
        if isinstance(module, nn.Linear):
            has_bias = module.bias is not None
            modules[path] = ModuleShape("linear", module.in_features, module.out_features, has_bias)
        elif isinstance(module, nn.Embedding):
            modules[path] = ModuleShape("embedding", module.num_embeddings, module.embedding_dim)
    return BaseShapes(modules)


class FileWeights:
    """Reads one tensor at a time, as it lies in the files (BaseWeights). For one thread at a time."""

    def __init__(self, model: Path, shapes: BaseShapes) -> None:
        self._model = model
        self.shapes = shapes
        self._files = _files_of(model)
        self.method = checkpoint_method(model)  # that the files are quantised by; empty for full precision

    def weight(self, module: str) -> Tensor:
        """[out_features, in_features] or [vocabulary, dim]. Raises AdapterRefused where the base is quantised."""
        shape = self.shapes.modules[module]
        if self.method:
            raise AdapterRefused(
                "activation_failed",
                f"this adapter can only be converted beside the base's own weight of {module}, and the files of "
                f"{self._model.name} are quantised ({self.method}). Use a base in full precision, or serve this "
                "adapter with --engine livery",
            )
        weight = self._read(f"{self._stored(module)}.weight")
        return weight.T if shape.input_first else weight

    def bias(self, module: str) -> Tensor | None:
        """[out_features], or None where the base has none."""
        return self._read(f"{module}.bias") if self.shapes.modules[module].has_bias else None

    def parameter(self, path: str) -> Tensor:
        """Any other parameter by its dotted path, as it lies in its file."""
        return self._read(path)

    def _stored(self, module: str) -> str:
        """Where the weight lies: a head that is tied to an embedding has none of its own."""
        return module if f"{module}.weight" in self._files else self.shapes.tied.get(module, module)

    def _read(self, name: str) -> Tensor:
        file = self._files.get(name)
        if file is None:
            raise AdapterRefused(
                "activation_failed",
                f"this adapter can only be converted beside the base's own weight {name}, and the files of "
                f"{self._model.name} have none of that name. Serve this adapter with --engine livery",
            )
        with safe_open(self._model / file, framework="pt") as tensors:
            found: Tensor = tensors.get_tensor(name)
        return found


def _files_of(model: Path) -> dict[str, str]:
    """Which file holds each tensor."""
    found = indexed(model)
    if found:
        return found
    for file in weight_files(model):
        with safe_open(file, framework="pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file.name)
    return found
