"""Trained tokens: rows of an embedding or of a head, put in by their ids."""

from __future__ import annotations

from livery_adapters.canonical import BaseWeights, EmbeddingChange, LinearChange
from livery_adapters.formats.base import Conversion, Tensors, rows_by_id, trained_rows
from livery_adapters.layout import TargetTensors
from livery_adapters.types.trainable_tokens import TokenSettings


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: TokenSettings, base: BaseWeights
) -> LinearChange | EmbeddingChange:
    """One module's rows."""
    return trained_rows(target.module, rows_by_id(settings.ids, tensors["rows"]), base)


CONVERSION = Conversion(convert_module)
