"""A model's safetensors files, one or in shards, read a tensor or some rows at a time and never mapped whole.

files = Checkpoint.open(Path("tuned"))
norm = files.tensors["model.norm.weight"]
norm.read()                # in the file's dtype; AdapterRefused if a number isn't finite
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from livery_adapters.model_files import INDEX_NAME, FilesUnusable, indexed, weight_files
from livery_adapters.refusal import AdapterRefused

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # buffers of old files: masks and the like
_MAX_HEADER = 100 << 20  # safetensors' own limit
_CHUNK = 1 << 19  # values of a table compared or copied at a time: less than a small model's linear module has


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: in which file, from which byte on.

    tensor.read(slice(0, 10))     # ten rows
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize if self.dtype in DTYPES else _INTEGERS[self.dtype]

    @property
    def is_number(self) -> bool:
        """Whether it holds weights, and not a mask or another buffer of whole numbers."""
        return self.dtype in DTYPES

    def chunks(self) -> Iterable[slice | None]:
        """Its rows in pieces that fit into little memory; None for a single number, which has none."""
        if not self.shape:
            return (None,)
        step = max(1, _CHUNK // max(1, math.prod(self.shape[1:])))
        return (slice(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step))

    def read(self, rows: slice | None = None) -> Tensor:
        """All of it, or these rows, in the file's dtype. Raises AdapterRefused (nonfinite_weights, bad_model), OSError.

        Read and not mapped: of a mapped file what was once touched stays in the process' memory.
        """
        shape = self.shape if rows is None else (rows.stop - rows.start, *self.shape[1:])
        start = 0 if rows is None else rows.start * math.prod(self.shape[1:])
        data = torch.empty(math.prod(shape) * self.itemsize, dtype=torch.uint8)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.begin + start * self.itemsize)
            _fill(stream, data.numpy().data, self)
        tensor = data.view(DTYPES[self.dtype]).view(shape)
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise AdapterRefused(
                "nonfinite_weights",
                f"tensor {self.name} in {self.file} holds {bad} values that are NaN or infinite; copy the file again, "
                "or use an earlier checkpoint",
            )
        return tensor


def alike(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of numbers hold the same ones, some rows of them in memory at a time.

    Raises AdapterRefused, as `read` does; OSError.
    """
    if one.shape != other.shape:
        return False
    for rows in one.chunks():
        before, after = one.read(rows), other.read(rows)
        wider = torch.promote_types(before.dtype, after.dtype)
        if not torch.equal(before.to(wider), after.to(wider)):
            return False
    return True


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors of a model directory by name, as its headers tell them. `files` are those that hold them."""

    directory: Path
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read the headers of the files that transformers would load. Raises AdapterRefused (bad_model)."""
        try:
            files, index = weight_files(directory), indexed(directory)
        except FilesUnusable as unusable:
            raise _bad(str(unusable)) from unusable
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            for tensor in _header(file):
                if tensor.name in tensors:
                    other = tensors[tensor.name].file.name
                    raise _bad(f"tensor {tensor.name} of {directory} is in {other} and in {file.name}; keep one")
                tensors[tensor.name] = tensor
        _check_index(directory, index, tensors)
        return cls(directory, tensors, files)


def _check_index(directory: Path, index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    for name, file in index.items():
        if name not in tensors or tensors[name].file.name != file:
            raise _bad(f"{file} of {directory} doesn't hold {name}, as {INDEX_NAME} says; copy the files again")


def _header(file: Path) -> Iterator[StoredTensor]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ValueError
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = [_tensor(name, value, file, 8 + length) for name, value in header.items()]
        ends = [8 + length + value["data_offsets"][1] for value in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise _bad(f"{file} is no safetensors file, or cut short; copy it again") from None
    if max(ends, default=0) > size:
        raise _bad(f"{file} has {size} bytes and needs {max(ends)}; copy it again")
    yield from found


def _tensor(name: str, value: dict[str, list[int]], file: Path, start: int) -> StoredTensor:
    begin, end = value["data_offsets"]
    dtype = str(value["dtype"])
    if dtype not in DTYPES and dtype not in _INTEGERS:
        raise _bad(
            f"tensor {name} in {file} is {dtype}; a difference can be taken of F32, F16 and BF16: give the model "
            "before it was quantised"
        )
    tensor = StoredTensor(name, dtype, tuple(int(n) for n in value["shape"]), file, start + begin)
    if end - begin != math.prod(tensor.shape) * tensor.itemsize:
        raise ValueError
    return tensor


def _fill(stream: BinaryIO, view: memoryview, tensor: StoredTensor) -> None:
    filled = 0
    while filled < len(view):
        count = os.readv(stream.fileno(), [view[filled : filled + (1 << 30)]])
        if count == 0:
            raise _bad(f"{tensor.file} ended while {tensor.name} was read; copy it again")
        filled += count


def _bad(reason: str) -> AdapterRefused:
    return AdapterRefused("bad_model", reason)
