"""BEFT: the bias with a trained vector added, or that vector where the base has no bias."""

from __future__ import annotations

from livery_adapters.canonical import BaseWeights, LinearChange
from livery_adapters.formats.base import Conversion, Tensors, wide
from livery_adapters.layout import TargetTensors


def convert_module(target: TargetTensors, tensors: Tensors, settings: None, base: BaseWeights) -> LinearChange:
    """One module's vector, [1, out]."""
    added, bias = tensors["beft_bias"].flatten(), base.bias(target.module)
    return LinearChange(bias=added if bias is None else wide(bias) + added.float())


CONVERSION = Conversion(convert_module)
