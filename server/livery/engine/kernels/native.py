"""Typed calls into the compiled kernels.

Owns the C interface: it checks dtypes, layouts and shapes before a pointer leaves Python, and lets torch do what
the native code isn't made for. Knows nothing of how the library was built. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from livery.engine.kernels.group import GroupSegments
from livery.engine.kernels.library import LibraryWeight
from livery.engine.kernels.native_rows import NativeRows
from livery.engine.kernels.weights import (
    LAYOUTS,
    GridWeight,
    Layout,
    PackedWeight,
    PlainWeight,
    Weight,
    pack_exactly,
    pack_rounded,
)

_INT = ctypes.c_int64


class _PagedStruct(ctypes.Structure):
    """Mirrors `Paged` in attention.cpp."""

    _fields_ = (
        ("q", _INT),
        ("q_row", _INT),
        ("q_head", _INT),
        ("k", _INT),
        ("v", _INT),
        ("tables", _INT),
        ("table_row", _INT),
        ("starts", _INT),
        ("lens", _INT),
        ("out", _INT),
        ("sequences", _INT),
        ("heads", _INT),
        ("kv_heads", _INT),
        ("dim", _INT),
        ("v_dim", _INT),
        ("block_size", _INT),
        ("blocks", _INT),
        ("max_blocks", _INT),
        ("window", _INT),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


class NativeKernels(NativeRows):
    """The kernels of one compiled library. Shapes and meaning are documented in reference.py."""

    name = "native"
    reads_tables = False

    def __init__(self, library: Path) -> None:
        """Load a library made by build.py. Raises OSError."""
        # torch is imported above: its OpenMP runtime is already in the process and is the one that gets used.
        loaded = ctypes.CDLL(str(library))
        super().__init__(loaded)
        self._lora = loaded.livery_grouped_lora
        self._lora.argtypes, self._lora.restype = (_INT,) * 9, _INT
        self._linear = loaded.livery_linear
        self._linear.argtypes, self._linear.restype = (_INT,) * 9, None
        loaded.livery_panel_width.restype = _INT
        self._panel_width = int(loaded.livery_panel_width())
        self._decoder = loaded.livery_decoder
        self._decoder.argtypes, self._decoder.restype = (ctypes.c_void_p,), _INT
        self._attention = loaded.livery_paged_attention
        self._attention.argtypes, self._attention.restype = (ctypes.c_void_p,), _INT

    def grouped_lora(self, x: Tensor, y: Tensor, segments: GroupSegments) -> None:
        """Add each segment's low-rank product to its rows of `y` in place.

        Both are fp32 on the CPU with contiguous rows. Raises ValueError when a segment does not fit them; `y` is
        unchanged then.
        """
        x_row, x_column = x.stride()
        y_row, y_column = y.stride()
        rows, width = x.shape
        if x.dtype is not torch.float32 or y.dtype is not torch.float32 or not (x.is_cpu and y.is_cpu):
            raise ValueError(f"grouped_lora needs fp32 on the CPU, got {x.dtype} and {y.dtype} on {x.device}")
        if y.shape[0] != rows or (x_column != 1 and width > 1) or (y_column != 1 and y.shape[1] > 1):
            raise ValueError(f"x {list(x.shape)} and y {list(y.shape)} need equal row counts and contiguous rows")
        misfit = self._lora(
            x.data_ptr(),
            x_row,
            y.data_ptr(),
            y_row,
            rows,
            width,
            y.shape[1],
            segments.address,
            len(segments.entries),
        )
        if misfit >= 0:
            start, end, group = segments.entries[misfit]
            raise ValueError(
                f"segment {misfit}, rows {start} to {end} of an adapter with {group.in_features} inputs and "
                f"{group.out_features} outputs, does not fit x {list(x.shape)} and y {list(y.shape)}"
            )

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_starts: Tensor | None,
        context_lens: Tensor,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attend causally with any number of queries per sequence.

        All floats are fp32 on the CPU; caches are contiguous, the last axis of q too. Raises ValueError when a
        table is too short for its context, points outside the cache, or a sequence has more queries than context.
        """
        if out is None:
            out = q.new_empty((q.shape[0], q.shape[1], v_cache.shape[3]))
        call = _paged_call(q, k_cache, v_cache, block_tables, query_starts, context_lens, scale, window, softcap, out)
        misfit = self._attention(ctypes.addressof(call))
        if misfit >= 0:
            raise ValueError(
                f"sequence {misfit} with a context of {int(context_lens[misfit])} tokens does not fit its block "
                f"table of {block_tables.shape[1]} entries, its queries or a cache of {k_cache.shape[0]} blocks"
            )
        return out

    def decoder(self, step: int) -> None:
        """All layers of a decoder for the step described at this address (decoder/native.py). Raises ValueError."""
        misfit = self._decoder(step)
        if misfit != -1:
            which = f"sequence {misfit} does not fit its block table" if misfit >= 0 else "a slot or segment is outside"
            raise ValueError(f"the step does not fit the cache: {which}")

    def pack(self, weight: Tensor, layout: Layout | Literal["exact"] = "fp32") -> Weight:
        """Lay a weight [out_features, in_features] out for `linear`. Keep the result and drop the original."""
        if weight.dtype is not torch.float32 or not weight.is_cpu:
            return PlainWeight(weight)
        if layout == "exact":
            return pack_exactly(weight, self._panel_width)
        return pack_rounded(weight, self._panel_width, layout)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias` for x [rows, in_features] and a weight that `pack` made, or a library holds.

        A row's result depends on nothing beside it, and is that of the weight's numbers in any other layout.
        """
        if isinstance(weight, PlainWeight):
            return functional.linear(x, weight.tensor, bias)
        if isinstance(weight, LibraryWeight):
            return weight.product(x, bias)
        rows, width = x.shape
        _check_linear(x, weight, bias)
        y = x.new_empty((rows, weight.out_features))
        self._linear(
            x.data_ptr(),
            x.stride(0),
            weight.panels.data_ptr(),
            LAYOUTS.index(weight.layout),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            rows,
            weight.out_features,
            width,
        )
        return y


def _check_linear(x: Tensor, weight: PackedWeight | GridWeight, bias: Tensor | None) -> None:
    if x.dtype is not torch.float32 or not x.is_cpu or x.stride(1) != 1:
        raise ValueError("the product needs fp32 rows on the CPU, contiguous in in_features")
    if x.shape[1] != weight.in_features:
        raise ValueError(f"rows of {x.shape[1]} do not fit a weight of {weight.in_features} in_features")
    if bias is not None and (bias.dtype is not torch.float32 or bias.shape != (weight.out_features,)):
        raise ValueError(f"the bias must be fp32 of {weight.out_features}, got {bias.dtype} {list(bias.shape)}")


def _paged_call(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor | None,
    context_lens: Tensor,
    scale: float,
    window: int,
    softcap: float,
    out: Tensor,
) -> _PagedStruct:
    rows, heads, dim = q.shape
    blocks, block_size, kv_heads, v_dim = v_cache.shape
    sequences, max_blocks = block_tables.shape
    if not all(t.dtype is torch.float32 and t.is_cpu for t in (q, k_cache, v_cache, out)):
        raise ValueError("attention needs fp32 queries, caches and outputs on the CPU")
    if not (k_cache.is_contiguous() and v_cache.is_contiguous() and out.is_contiguous() and q.stride(2) == 1):
        raise ValueError("attention needs contiguous caches and outputs, and queries contiguous in head_dim")
    if k_cache.shape != (blocks, block_size, kv_heads, dim) or heads % kv_heads or out.shape != (rows, heads, v_dim):
        raise ValueError(
            f"queries {list(q.shape)}, keys {list(k_cache.shape)}, values {list(v_cache.shape)} and output "
            f"{list(out.shape)} do not fit together"
        )
    if block_tables.dtype is not torch.int32 or context_lens.dtype is not torch.int32:
        raise ValueError("block_tables and context_lens must be int32")
    if block_tables.stride(1) != 1 and max_blocks > 1:
        raise ValueError("block_tables needs contiguous rows")
    if context_lens.shape != (sequences,) or not context_lens.is_contiguous():
        raise ValueError(f"context_lens must be [{sequences}] and contiguous, got {list(context_lens.shape)}")
    _check_starts(query_starts, sequences, rows)
    return _PagedStruct(
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        block_tables.data_ptr(),
        block_tables.stride(0),
        0 if query_starts is None else query_starts.data_ptr(),
        context_lens.data_ptr(),
        out.data_ptr(),
        sequences,
        heads,
        kv_heads,
        dim,
        v_dim,
        block_size,
        blocks,
        max_blocks,
        window,
        scale,
        softcap,
    )


def _check_starts(query_starts: Tensor | None, sequences: int, rows: int) -> None:
    if query_starts is None:
        if sequences != rows:
            raise ValueError(f"{rows} query rows for {sequences} sequences: give query_starts")
        return
    if query_starts.dtype is not torch.int32 or not query_starts.is_contiguous():
        raise ValueError("query_starts must be contiguous int32")
    starts = query_starts.tolist()
    if len(starts) != sequences + 1 or starts[0] != 0 or starts[-1] != rows or starts != sorted(starts):
        raise ValueError(f"query_starts must rise from 0 to {rows} in {sequences + 1} entries, got {starts}")
