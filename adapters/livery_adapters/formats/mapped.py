"""The tensors of a checked file, as views of its mapping: nothing is read before it is used, and nothing copied.

The safetensors library isn't asked: it keeps a few integers of every tensor it ever gave out (seen with 0.6 to
0.8), which adds up in a server that loads adapters for months, and `tensor_file` has checked the header already.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from livery_adapters.layout import AdapterManifest
from livery_adapters.tensor_file import WEIGHTS_NAME, TensorEntry, open_regular

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


def mapped_tensors(directory: Path, manifest: AdapterManifest) -> dict[str, Tensor]:
    """Every tensor of the file by name, each a memory of its own. Raises OSError when the file is gone or shorter."""
    with open_regular(directory, WEIGHTS_NAME) as stream:
        if any(entry.end > os.fstat(stream.fileno()).st_size for entry in manifest.tensors):
            raise OSError(errno.EIO, f"{WEIGHTS_NAME} is shorter than when it was checked")
        # Copy on write: torch wants memory that could be written to.
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return {entry.name: _tensor(data, entry) for entry in manifest.tensors}


def _tensor(data: mmap.mmap, entry: TensorEntry) -> Tensor:
    dtype, count = _DTYPES[entry.dtype], math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.begin % dtype.itemsize:  # a header of odd length: the numbers don't stand where they could be used
        return torch.frombuffer(bytearray(data[entry.begin : entry.end]), dtype=dtype).reshape(entry.shape)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=entry.begin).reshape(entry.shape)
