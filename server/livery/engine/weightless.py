"""A model without its weights, made of its configuration alone: enough to watch a forward through it.

transformers builds the model on the meta device. Then each weight becomes one number, seen at all its places, so that a
model of any size takes no memory; unlike meta tensors these have values, which some forwards look at: a mixture's
routing, positions whose RoPE depends on length. Linear modules give zeros of the right shape instead of multiplying.

Routed experts get random numbers, since what they compute has to be compared. They take the memory of one expert: each
expert's matrix is a window on one tall matrix, which begins a row further down than that of the expert before, so that
no two are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from livery.engine.base import ModelRefused
from livery.engine.structure import is_experts, is_linear, linear_features


def weightless(model_path: str) -> nn.Module:
    """The causal LM of a directory's config.json in fp32, for one forward over a few tokens. Raises ModelRefused."""
    try:
        config = AutoConfig.from_pretrained(model_path, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            )
    except Exception as error:  # whatever a model's own code stumbles over
        raise ModelRefused(f"{model_path} can't be built by transformers: {error}") from error
    made: dict[int, nn.Parameter] = {}  # by the parameter in whose place it is: tied ones stay one
    shared: dict[tuple[str, torch.Size], Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        experts = is_experts(module)
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if experts and (name, parameter.shape) not in shared:
                shared[name, parameter.shape] = _overlapping(parameter, generator)
            if id(parameter) not in made:
                filled = shared[name, parameter.shape] if experts else _one_number(parameter)
                made[id(parameter)] = nn.Parameter(filled, requires_grad=False)
            setattr(module, name, made[id(parameter)])
        _fill_buffers(module)
        if is_linear(module):
            module.forward = _zeros(linear_features(module)[1])
    return model.eval()


def _fill_buffers(module: nn.Module) -> None:
    """And what a module keeps beside them as a plain attribute, such as the frequencies that RoPE began with."""
    for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
        filled = _one_number(buffer)
        setattr(module, name, filled.clone() if buffer.dim() == 1 else filled)  # RoPE writes into its frequencies
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and value.is_meta:
            setattr(module, name, _one_number(value))


def _one_number(like: Tensor) -> Tensor:
    """One, which leaves a product alone, or zero among integers, which are positions in something else."""
    number = torch.zeros((), dtype=like.dtype) if _counts(like.dtype) else torch.ones((), dtype=like.dtype)
    return number.expand(like.shape)


def _counts(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def _overlapping(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers like [experts, rows, columns], in the memory of one expert and a row for each of the others."""
    if like.dim() != 3:
        return torch.randn(like.shape, generator=generator)
    experts, rows, columns = like.shape
    tall = torch.randn((experts - 1 + rows, columns), generator=generator) / math.sqrt(max(rows, columns))
    return tall.as_strided(like.shape, (columns, columns, 1))


def _zeros(features: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor, *_: Any) -> Tensor:  # noqa: ANN401
        return x.new_zeros((*x.shape[:-1], features))

    return forward
