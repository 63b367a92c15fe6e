"""AdaLoRA: ΔW = alpha / (init_r + 1e-5) · B·diag(E)·A, with E folded into A."""

from __future__ import annotations

from livery_adapters.canonical import BaseWeights, LinearChange, LowRank
from livery_adapters.formats.base import Conversion, Tensors
from livery_adapters.layout import TargetTensors
from livery_adapters.types.adalora import AdaLoraSettings


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: AdaLoraSettings, base: BaseWeights
) -> LinearChange:
    """A [rank, in], E [rank, 1], B [out, rank]. A module whose rank was pruned to zero changes nothing."""
    if target.rank == 0:
        return LinearChange()
    a = tensors["lora_A"].float() * tensors["lora_E"].float()
    return LinearChange(deltas=(LowRank(a=a, b=tensors["lora_B"], scale=target.scale),))


CONVERSION = Conversion(convert_module)
