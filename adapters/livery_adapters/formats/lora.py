"""LoRA and rsLoRA: the pairs of the file as they are, the scale kept apart."""

from __future__ import annotations

from livery_adapters.canonical import BaseWeights, EmbeddingChange, LinearChange, LowRank
from livery_adapters.formats.base import Conversion, Tensors
from livery_adapters.layout import TargetTensors
from livery_adapters.types.lora import LoraSettings


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: LoraSettings, base: BaseWeights
) -> LinearChange | EmbeddingChange:
    """One module's pair."""
    if target.kind == "embedding":
        return EmbeddingChange(LowRank(tensors["lora_embedding_A"], tensors["lora_embedding_B"], target.scale))
    return LinearChange(deltas=(LowRank(tensors["lora_A"], tensors["lora_B"], target.scale),))


CONVERSION = Conversion(convert_module)
