"""GLoRA (arXiv 2306.07967): exact where A and B are vectors or numbers, else the weight's part is of full rank."""

from __future__ import annotations

import torch
from torch import Tensor

from livery_adapters.canonical import BaseWeights, LinearChange, LowRank
from livery_adapters.formats.base import Conversion, Dense, Tensors, wide
from livery_adapters.layout import TargetTensors
from livery_adapters.types.glora import GloraSettings


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: GloraSettings, base: BaseWeights
) -> LinearChange | None:
    """(1 + A) ⊙ (W + B / (1 + A)): a gain, and a ΔW that is the same in all columns; none where a gain is zero."""
    if "A.X" not in tensors or "B.X" not in tensors:
        return None
    shape = base.shapes.modules[target.module]
    gain = 1 + tensors["A.X"].float().flatten().expand(shape.out_features)
    if bool((gain == 0).any()):
        return None
    added = LowRank(
        a=torch.ones(1, shape.in_features), b=tensors["B.X"].float().reshape(-1, 1) / gain[:, None], scale=1.0
    )
    return LinearChange(deltas=(added,), gain=gain, bias=_bias(target.module, tensors, base))


def dense(target: TargetTensors, tensors: Tensors, settings: GloraSettings, base: BaseWeights) -> Dense:
    """ΔW = W ⊙ A + B."""
    weight = wide(base.weight(target.module))
    return Dense(weight * _path("A", tensors) + _path("B", tensors), _bias(target.module, tensors, base))


def _bias(module: str, tensors: Tensors, base: BaseWeights) -> Tensor | None:
    """PEFT leaves a module without a bias without one."""
    bias = base.bias(module)
    if bias is None:
        return None
    moved = (wide(base.weight(module)) @ _path("C", tensors)).flatten()
    return wide(bias) * (1 + _path("D", tensors)) + _path("E", tensors) + moved


def _path(letter: str, tensors: Tensors) -> Tensor:
    """One of the five, ready to be broadcast."""
    if f"{letter}.Xd" in tensors:
        return tensors[f"{letter}.Xd"].float() @ tensors[f"{letter}.Xu"].float()
    value = tensors.get(f"{letter}.X")
    return tensors[f"{letter}.zeros"].float() if value is None else value.float()


CONVERSION = Conversion(convert_module, dense)
