"""What a case of the corpus is, and the ways to damage the files of a good adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load, save
from torch import Tensor

from hostile.base import good
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

Build = Callable[[Path], None]  # makes the adapter at a path where nothing is yet
Header = dict[str, Any]
# Where the mistake shows: while the files are copied in, while they are read, compared with the base, looked through
# for NaN, converted, or once their effect is known.
Stage = Literal["store", "read", "check", "finite", "convert", "effect"]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
A0 = f"{Q0}.lora_A.weight"
B0 = f"{Q0}.lora_B.weight"


@dataclass(frozen=True)
class Case:
    """One bad adapter, and how it must be refused: `says` is part of the message.

    An empty `code` means that there is nothing wrong with it, however it looks. `local`: it can't be uploaded, as
    the trick is in the directory and not in the bytes. Every refusal has words of its own; only cases that are one
    and the same `mistake` share them.
    """

    group: str
    name: str
    build: Build
    code: str
    says: str = ""
    stage: Stage = "read"
    local: bool = False
    mistake: str = ""

    @property
    def title(self) -> str:
        return f"{self.group}: {self.name}"


def write(directory: Path, config: bytes | None, weights: bytes | None) -> None:
    """The two files; None leaves one out."""
    directory.mkdir()
    if config is not None:
        (directory / CONFIG_NAME).write_bytes(config)
    if weights is not None:
        (directory / WEIGHTS_NAME).write_bytes(weights)


def raw_config(change: Callable[[bytes], bytes]) -> Build:
    """The bytes of a good LoRA's configuration changed."""
    return lambda directory: write(directory, change(good()[0]), good()[1])


def raw_weights(change: Callable[[bytes], bytes]) -> Build:
    """The bytes of a good LoRA's weights changed."""
    return lambda directory: write(directory, good()[0], change(good()[1]))


def config(kind: str = "lora", /, *, drop: tuple[str, ...] = (), **fields: object) -> Build:
    """Fields of a good adapter's configuration changed or dropped."""

    def build(directory: Path) -> None:
        before, weights = good(kind)
        value = {name: old for name, old in json.loads(before).items() if name not in drop}
        write(directory, json.dumps({**value, **fields}).encode("utf-8", "surrogatepass"), weights)

    return build


def tensors(change: Callable[[dict[str, Tensor]], object], kind: str = "lora", /, **fields: object) -> Build:
    """Tensors of a good adapter changed in place, and fields of its configuration."""

    def build(directory: Path) -> None:
        before, weights = good(kind)
        found = {name: tensor.clone() for name, tensor in load(weights).items()}
        change(found)
        write(
            directory,
            json.dumps({**json.loads(before), **fields}).encode(),
            save({name: tensor.contiguous() for name, tensor in found.items()}),
        )

    return build


def header(change: Callable[[Header], object]) -> Build:
    """The header of a good LoRA's weights changed in place, its data left alone."""

    def build(directory: Path) -> None:
        found, data = split(good()[1])
        change(found)
        write(directory, good()[0], joined(json.dumps(found).encode("utf-8", "surrogatepass"), data))

    return build


def header_bytes(text: bytes, data: bytes | None = None) -> Build:
    """Any header at all; the data of a good LoRA follow unless others are given."""
    return lambda directory: write(directory, good()[0], joined(text, split(good()[1])[1] if data is None else data))


def split(weights: bytes) -> tuple[Header, bytes]:
    """Header and data of a safetensors file."""
    end = 8 + int.from_bytes(weights[:8], "little")
    found: Header = json.loads(weights[8:end])
    return found, weights[end:]


def joined(text: bytes, data: bytes) -> bytes:
    """A safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text + data
