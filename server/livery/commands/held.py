"""How a base model is held by a command that loads it in its own process. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from livery.engine.base import ModelRefused
from livery.engine.quantization import SCHEMES, check_flag

Quantization = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="Loaded here, the base is held so, as the server's flag of that name does; auto: as its checkpoint is.",
    ),
]


def check_quantization(name: str) -> None:
    """Raises ModelRefused for a form that there is none of, or that isn't installed."""
    if name not in ("auto", *SCHEMES):
        raise ModelRefused(f"--quantization is {name!r}: give one of auto, {', '.join(SCHEMES)}")
    check_flag(name, "auto")


@dataclass(frozen=True, slots=True)
class Held:
    """The names are those of EngineConfig: on a CPU in fp32, quantised as the checkpoint is, unless told otherwise."""

    device: str = "cpu"
    dtype: str = "float32"
    quantization: str = "auto"


PLAINLY = Held()
