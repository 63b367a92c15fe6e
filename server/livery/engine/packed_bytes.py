"""What a table that no library quantises takes on a CPU, where numbers that fit into fewer bits are held in these.

packed_bytes(Path("model.safetensors"), "model.embed_tokens.weight")
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from livery.engine.kernels.grid import BLOCK, Bits, exact_grid
from livery.engine.kernels.weights import Layout

_SMALLER: tuple[Layout, ...] = ("int4", "int8", "bf16")
_BLOCK_BYTES: dict[Layout, int] = {"int4": 2 + 2 + BLOCK // 2, "int8": 2 + BLOCK}  # scale, least value, codes
_NUMBERS_AT_ONCE = 1 << 20


def packed_bytes(file: Path, name: str) -> int:
    """Of a tensor [rows, columns] as kernels.weights.pack_exactly would hold it, but for what fills its last panel.

    It is read in pieces, and no further than to the first that a layout can't hold. Raises OSError, SafetensorError.
    """
    with safe_open(file, "pt") as opened:
        table = opened.get_slice(name)
        rows, columns = table.get_shape()
        step = max(1, _NUMBERS_AT_ONCE // columns)
        for layout in _SMALLER:
            if all(_fits(table[start : start + step].float(), layout) for start in range(0, rows, step)):
                return _nbytes(layout, rows, columns)
    return _nbytes("fp32", rows, columns)


def _fits(rows: Tensor, layout: Layout) -> bool:
    if layout == "bf16":
        return torch.equal(rows.bfloat16().float(), rows)
    bits: Bits = 4 if layout == "int4" else 8
    return exact_grid(rows[:1], bits) is not None and exact_grid(rows, bits) is not None


def _nbytes(layout: Layout, rows: int, columns: int) -> int:
    if layout in _BLOCK_BYTES:
        return rows * -(-columns // BLOCK) * _BLOCK_BYTES[layout]
    return rows * columns * (2 if layout == "bf16" else 4)
