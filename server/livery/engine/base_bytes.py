"""What a base's weights will take, told from its files' headers: no weight is read, and nothing quantised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from livery.engine.quantization import Chosen
from livery_adapters.base_model import BaseShapes
from livery_adapters.model_files import weight_files

PackedBytes = Callable[[Path, str], int]  # a safetensors file and a tensor in it -> bytes
_NUMBERS = ("F32", "F16", "BF16")
_MOST_HEADER = 100 << 20  # bytes; safetensors' own limit


@dataclass(frozen=True, slots=True)
class ExpectedBytes:
    """Bytes of a base `held` as it would be, and `full`: all its numbers in the format that it computes in."""

    held: int
    full: int


def expected_bytes(
    model: Path, shapes: BaseShapes, chosen: Chosen | None, itemsize: int, packed_head: PackedBytes | None = None
) -> ExpectedBytes:
    """What the base in the directory `model` will take; `itemsize` bytes is a number that isn't quantised.

    Without `chosen` both are the most: on a CPU weights that fit into fewer bits are held so. `packed_head` tells that
    of the head, which no library quantises, from its file; without it the head has `itemsize` bytes a number as well.
    Raises FilesUnusable, OSError or ValueError where the files can't be read.
    """
    linears = {path: shape for path, shape in shapes.modules.items() if shape.kind == "linear"}
    full = sum(shape.in_features * shape.out_features for path, shape in linears.items() if path not in shapes.tied)
    held = rest = 0
    of_linears: dict[str, int] = {}
    packed: set[str] = set()
    known = {*linears, *shapes.tied.values()}
    heads = {shapes.tied.get(path, path): path for path in _heads(shapes)}  # where their weights lie
    of_heads: dict[str, int] = {}
    for file, name, dtype, numbers, nbytes in _tensors(model):
        # Files of a model without its head leave its name out.
        whole_name = name if name.startswith(f"{shapes.backbone}.") else f"{shapes.backbone}.{name}"
        path = next((path for path in (*_parents(name), *_parents(whole_name)) if path in known), None)
        if packed_head and path in heads and name.endswith(".weight") and dtype in _NUMBERS:
            of_heads[heads[path]] = packed_head(file, name)
        if path not in linears or name.endswith(".bias"):
            rest += numbers
            continue
        of_linears[path] = of_linears.get(path, 0) + nbytes
        if dtype[0] not in "FB" or dtype.startswith("F8"):
            packed.add(path)
    for path, shape in linears.items():
        whole = shape.in_features * shape.out_features * itemsize
        if chosen is not None and chosen.on_load and path not in _heads(shapes):
            held += chosen.scheme.nbytes(shape.in_features, shape.out_features)
        elif path in packed:
            held += of_linears[path]
        elif path in of_heads:
            held += of_heads[path] - (whole if path in shapes.tied else 0)  # the table itself is in `rest`
        elif path not in shapes.tied:
            held += whole
    return ExpectedBytes(held + rest * itemsize, (full + rest) * itemsize)


def _heads(shapes: BaseShapes) -> set[str]:
    """Linear modules that make logits, which stay as they are: those outside of the model without its head."""
    if not shapes.backbone:
        return set()
    return {
        path
        for path, shape in shapes.modules.items()
        if shape.kind == "linear" and not path.startswith(f"{shapes.backbone}.")
    }


def _parents(name: str) -> Iterator[str]:
    """The paths of modules that a tensor of this name may belong to, the nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _tensors(model: Path) -> Iterator[tuple[Path, str, str, int, int]]:
    """(file, name, dtype as safetensors calls it, numbers, bytes) of all tensors of a model."""
    for file in weight_files(model):
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if size > _MOST_HEADER:
                raise ValueError(f"{file} is no safetensors file: its header would have {size} bytes")
            header: dict[str, Any] = json.loads(opened.read(size))
        for name, told in header.items():
            if name == "__metadata__":
                continue
            first, last = told["data_offsets"]
            yield file, name, told["dtype"], prod(told["shape"]), last - first
