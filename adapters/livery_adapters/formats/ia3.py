"""(IA)³: a diagonal on the input of feed-forward modules, on the output of others, bias included."""

from __future__ import annotations

from livery_adapters.canonical import BaseWeights, InputTransform, LinearChange
from livery_adapters.formats.base import Conversion, Tensors, wide
from livery_adapters.layout import TargetTensors
from livery_adapters.types.ia3 import Ia3Settings


def convert_module(target: TargetTensors, tensors: Tensors, settings: Ia3Settings, base: BaseWeights) -> LinearChange:
    """One module's vector, [1, in] or [out, 1]: the shape says which side it is for."""
    vector = tensors["ia3_l"]
    if vector.shape[0] == 1:
        return LinearChange(transform=InputTransform(diagonal=vector.flatten()))
    gain, bias = vector.flatten(), base.bias(target.module)
    return LinearChange(gain=gain, bias=None if bias is None else gain.float() * wide(bias))


CONVERSION = Conversion(convert_module)
