"""Are all numbers of an adapter's weights finite? Reads the file's bytes with numpy: no torch, small memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from livery_adapters.layout import AdapterManifest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import CHUNK, INTEGERS, ITEM_SIZE, WEIGHTS_NAME, TensorEntry, open_regular

# All exponent bits set means infinity or NaN, in each of the three formats.
_EXPONENT = {"F32": np.uint32(0x7F800000), "F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}


def check_finite(directory: Path, manifest: AdapterManifest) -> None:
    """Raise AdapterRefused (nonfinite_weights) naming the first tensor with a NaN or an infinity."""
    with open_regular(directory, WEIGHTS_NAME) as stream:
        for entry in manifest.tensors:
            if entry.dtype in INTEGERS:
                continue
            stream.seek(entry.begin)
            left = entry.end - entry.begin
            while left:
                chunk = stream.read(min(CHUNK, left))
                if not chunk:
                    raise AdapterRefused("incomplete", f"{WEIGHTS_NAME} shrank while it was read; copy it again")
                left -= len(chunk)
                _check_chunk(entry, chunk)


def _check_chunk(entry: TensorEntry, chunk: bytes) -> None:
    mask = _EXPONENT[entry.dtype]
    usable = len(chunk) - len(chunk) % ITEM_SIZE[entry.dtype]
    bits = np.frombuffer(chunk[:usable], "<u4" if ITEM_SIZE[entry.dtype] == 4 else "<u2")
    bad = int(np.count_nonzero((bits & mask) == mask))
    if bad:
        raise AdapterRefused(
            "nonfinite_weights",
            f"tensor {entry.name} holds {bad} values that are NaN or infinite; training diverged: use an earlier "
            "checkpoint",
        )
