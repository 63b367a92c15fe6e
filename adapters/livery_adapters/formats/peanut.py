"""PEANuT (arXiv 2410.01870): its last layer is linear and of low rank, so its ΔW is, whatever comes before."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from livery_adapters.canonical import BaseWeights, LinearChange, LowRank
from livery_adapters.formats.base import Conversion, Tensors, wide
from livery_adapters.layout import TargetTensors
from livery_adapters.types.peanut import PeanutSettings, inner_layers

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: PeanutSettings, base: BaseWeights
) -> LinearChange:
    """ΔWᵀ = s·f(Wᵀ)·Bᵀ with f(Wᵀ) [in, rank]: layers of width rank, each decoder with an encoder's input added."""
    active = _ACTIVATIONS[settings.activation]
    hidden = active(wide(base.weight(target.module)).T @ tensors["peanut_A"].float().T)
    layers = [tensors[role].float() for role in inner_layers(settings.depth)]
    inputs = []
    for encoder in layers[: settings.depth]:
        inputs.append(hidden)
        hidden = active(hidden @ encoder.T)
    for decoder in layers[settings.depth :]:
        hidden = active(hidden @ decoder.T) + inputs.pop()
    return LinearChange(deltas=(LowRank(a=hidden.T.contiguous(), b=tensors["peanut_B"], scale=target.scale),))


CONVERSION = Conversion(convert_module)
