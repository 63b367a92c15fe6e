"""How long prompts and answers are, in tokens."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

import numpy as np

from livery_loadtest.spec import Azure, Between, Fixed, Length, Lognormal, OfTrace
from livery_loadtest.traces import Ints, TraceRows, azure_2023, draw


class Side(StrEnum):
    """What a length is of; the name of its field in a workload."""

    PROMPT = "prompt"
    OUTPUT = "output"


def lengths(length: Length, side: Side, count: int, rows: TraceRows | None, rng: np.random.Generator) -> Ints:
    """`count` lengths of at least 1; `rows` are those of the trace that is replayed, one for each."""
    match length:
        case Fixed():
            return np.full(count, length.tokens, dtype=np.int64)
        case Between():
            return rng.integers(length.low, length.high, endpoint=True, size=count)
        case Lognormal():
            drawn = length.median * np.exp(length.sigma * rng.standard_normal(count))
            return np.rint(np.clip(drawn, length.low, length.high)).astype(np.int64)
        case Azure():
            drawn = draw(getattr(getattr(azure_2023(), length.trace), side), count, rng)
            return _scaled(drawn, length.scale, length.high)
        case OfTrace():
            assert rows is not None, "a workload with lengths of a trace replays one"
            of_rows = rows.prompts if side is Side.PROMPT else rows.outputs
            return _scaled(of_rows[:count].astype(float), length.scale, length.high)
        case _:
            assert_never(length)


def _scaled(tokens: np.ndarray, scale: float, high: int) -> Ints:
    return np.rint(np.clip(tokens * scale, 1, high)).astype(np.int64)
