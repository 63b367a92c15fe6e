"""The demo base's GGUF file, and its numbers written anew in other forms of GGUF.

GGUF["Q6_K"](Path("demo.gguf"), Path("demo.Q6_K.gguf"))
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_BLOCK, _PART = 256, 16  # numbers of a block of Q6_K, and of those that share a scale


def _copied(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def rewritten(source: Path, target: Path, form: Callable[[str, Floats], GGMLQuantizationType]) -> None:
    """A copy whose tables have the form that is told for each by its name and numbers; norms stay as they are."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = form(tensor.name, numbers) if numbers.ndim == 2 else GGMLQuantizationType.F32
        data = q6_k(numbers) if kind == GGMLQuantizationType.Q6_K else quantize(numbers, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def q6_k(numbers: Floats) -> NDArray[np.uint8]:
    """Rows in Q6_K: 6 bits a number, a scale of 8 bits for 16 of them, and one in fp16 for 16 such scales.

    The layout is that of ggml's block_q6_K (ggml-common.h); scales are the plain ones of the largest number, without
    llama.cpp's search for better ones.
    """
    blocks = numbers.reshape(-1, _BLOCK // _PART, _PART)
    scales = np.abs(blocks).max(-1) / 31
    whole = (scales.max(-1, keepdims=True) / 127).astype(np.float16)
    whole_wide = np.where(whole == 0, 1, whole).astype(np.float32)
    eighths = np.clip(np.ceil(scales / whole_wide), 0, 127).astype(np.int8)
    steps = np.where(eighths == 0, 1, eighths).astype(np.float32) * whole_wide
    codes = (np.clip(np.rint(blocks / steps[..., None]), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    ql = np.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    count = len(blocks)
    parts = (ql.reshape(count, -1), qh.reshape(count, -1), eighths.view(np.uint8), whole.view(np.uint8))
    return np.concatenate(parts, axis=1).reshape(len(numbers), -1)


def _q6_k_where_it_fits(name: str, numbers: Floats) -> GGMLQuantizationType:
    return GGMLQuantizationType.Q6_K if numbers.shape[1] % _BLOCK == 0 else GGMLQuantizationType.Q8_0


GGUF: dict[str, Callable[[Path, Path], None]] = {
    "Q4_1": _copied,
    "Q8_0": lambda source, target: rewritten(source, target, lambda name, numbers: GGMLQuantizationType.Q8_0),
    "Q6_K": lambda source, target: rewritten(source, target, _q6_k_where_it_fits),
}
