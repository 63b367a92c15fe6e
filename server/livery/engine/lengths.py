"""How long sequences a model was made for, as its configuration tells. Reads numbers only; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCALING = (
    "yarn",
    "linear",
    "dynamic",
)  # stretch the positions by a factor; llama3's and longrope's are stretched already


def scaled_length(max_positions: int, config: Mapping[str, Any]) -> int:
    """Positions that a model takes, `max_positions` being its `max_position_embeddings` and `config` its config.json.

    Derived as vLLM does (`_get_and_verify_max_len`): the length before scaling, times the factor. That length is
    `original_max_position_embeddings`, so that a `max_position_embeddings` which has grown already isn't multiplied
    again, and `max_position_embeddings` where it isn't told.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = {name: one for name, one in rope.items() if isinstance(one, Mapping)}
    lengths = [
        _scaled(max_positions, one, config.get("original_max_position_embeddings"))
        # Of layers by kind, and in all of Gemma 3, a linear factor is in `max_position_embeddings` already.
        for one in nested.values() or [rope]
        if not (_kind(one) == "linear" and (nested or "gemma3" in str(config.get("model_type"))))
    ]
    scaled = [length for length in lengths if length is not None]
    return max(scaled) if scaled else max_positions


def _scaled(max_positions: int, rope: Mapping[str, Any], beside: object) -> int | None:
    """What one set of RoPE's parameters makes of it; None where it stays as it is."""
    factor, kind = rope.get("factor"), _kind(rope)
    if kind not in SCALING or not isinstance(factor, int | float):
        return None
    # transformers takes the one beside the parameters first, where a model has both.
    original = beside if isinstance(beside, int) else rope.get("original_max_position_embeddings")
    length = int((original if isinstance(original, int) else max_positions) * factor)
    # The others' vendors tell no original length but to say that the scaled one is in max_position_embeddings.
    return length if kind == "yarn" else max(length, max_positions)


def _kind(rope: Mapping[str, Any]) -> object:
    return rope.get("rope_type", rope.get("type"))
