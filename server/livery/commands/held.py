"""How a base model is held by a command that loads it in its own process. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Held:
    """The names are those of EngineConfig: on a CPU in fp32, quantised as the checkpoint is, unless told otherwise."""

    device: str = "cpu"
    dtype: str = "float32"
    quantization: str = "auto"


PLAINLY = Held()
