"""Trained tokens: rows of an embedding or of a head, put in by their ids."""

from __future__ import annotations

import torch

from livery_adapters.canonical import BaseWeights, EmbeddingChange, LinearChange, Rows
from livery_adapters.formats.base import Conversion, Tensors
from livery_adapters.layout import TargetTensors
from livery_adapters.types.trainable_tokens import TokenSettings


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: TokenSettings, base: BaseWeights
) -> LinearChange | EmbeddingChange:
    """One module's rows, sorted by id. PEFT computes a head with trained rows without its bias."""
    ids = torch.tensor(settings.ids, dtype=torch.int64)
    ascending = torch.argsort(ids)
    rows = Rows(ids[ascending], tensors["rows"][ascending])
    shape = base.shapes.modules[target.module]
    if shape.kind == "embedding":
        return EmbeddingChange(rows=rows)
    return LinearChange(rows=rows, bias=torch.zeros(shape.out_features) if shape.has_bias else None)


CONVERSION = Conversion(convert_module)
