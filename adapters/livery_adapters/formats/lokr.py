"""LoKr: a Kronecker product, each side in full or as a product of two thin matrices."""

from __future__ import annotations

from torch import Tensor

from livery_adapters.canonical import BaseWeights, Kronecker, LinearChange
from livery_adapters.formats.base import Conversion, Tensors
from livery_adapters.layout import TargetTensors
from livery_adapters.types.lycoris import LycorisSettings


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: LycorisSettings, base: BaseWeights
) -> LinearChange:
    """One module's two sides, multiplied out where they are decomposed: that is far smaller than W still."""
    return LinearChange(
        deltas=(Kronecker(left=_side(tensors, "lokr_w1"), right=_side(tensors, "lokr_w2"), scale=target.scale),)
    )


def _side(tensors: Tensors, name: str) -> Tensor:
    full = tensors.get(name)
    return tensors[f"{name}_a"].float() @ tensors[f"{name}_b"].float() if full is None else full


CONVERSION = Conversion(convert_module)
