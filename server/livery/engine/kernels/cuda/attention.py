"""Launches paged attention: contexts are split where there are few sequences, prompts are cut into tiles of queries."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from livery.engine.kernels.cuda.attention_kernels import combine_kernel, decode_kernel, prefill_kernel

PROGRAMS = 264  # two per multiprocessor of an H100 or H200
MOST_SPLITS = 64
TOKENS = 64  # keys and values of one turn of the loop
QUERY_ROWS = 64  # (query, head) pairs of a program that reads a prompt
LEAST_ROWS = 16  # of a tile of the matrix units
# Each kernel is compiled for few values of what its launches differ by: compiling takes longer than many steps.
LEAST_SEQUENCES = 64


def paged_attention(
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
    """As reference.py says, for any mix of contexts; nothing is read back from the device."""
    rows, heads, width = q.shape
    kv_heads, v_width = k_cache.shape[2], v_cache.shape[3]
    if out is None:
        out = q.new_empty((rows, heads, v_width))
    if rows == 0:
        return out
    for name, tensor in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache), ("out", out)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
            raise ValueError(f"{name} needs contiguous heads, got strides {tensor.stride()}")
    shape = {
        "G": heads // kv_heads,
        "D": width,
        "DP": max(LEAST_ROWS, triton.next_power_of_2(width)),
        "DV": v_width,
        "DVP": max(LEAST_ROWS, triton.next_power_of_2(v_width)),
    }
    flags = {"SOFTCAP": softcap != 0, "WINDOW": window != 0, "T": TOKENS if q.dtype != torch.float32 else TOKENS // 2}
    numbers = (float(scale), float(softcap), window, k_cache.shape[1])
    strides = (
        block_tables.stride(0),
        q.stride(0),
        q.stride(1),
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        out.stride(0),
        out.stride(1),
    )
    if query_starts is None:
        _decode(q, k_cache, v_cache, block_tables, context_lens, out, numbers, strides, shape, flags)
        return out
    sequences = context_lens.shape[0]
    heads_padded = triton.next_power_of_2(shape["G"])
    tile = max(QUERY_ROWS, heads_padded)
    # Every sequence may end with a tile that isn't full.
    tiles = triton.cdiv(rows, tile // heads_padded) + sequences
    prefill_kernel[(tiles, kv_heads)](
        q,
        k_cache,
        v_cache,
        block_tables,
        query_starts,
        context_lens,
        out,
        *numbers,
        sequences,
        *strides,
        **shape,
        **flags,
        GP=heads_padded,
        M=tile,
        SP=max(LEAST_SEQUENCES, triton.next_power_of_2(sequences)),
        STAGES=1,  # weights are cast in registers before a product of a warp group: see lora_kernels.py
        num_stages=1,
    )
    return out


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    out: Tensor,
    numbers: tuple[float | int, ...],
    strides: tuple[int, ...],
    shape: dict[str, int],
    flags: dict[str, int],
) -> None:
    rows, heads, _ = q.shape
    kv_heads = k_cache.shape[2]
    tile = max(LEAST_ROWS, triton.next_power_of_2(shape["G"]))
    longest = triton.cdiv(block_tables.shape[1] * k_cache.shape[1], flags["T"])
    splits = _power_of_two(min(MOST_SPLITS, longest, PROGRAMS // (rows * kv_heads)))
    split_shape = (rows, kv_heads, splits) if splits > 1 else (0,)
    sums = torch.empty((*split_shape, 2, tile), dtype=torch.float32, device=q.device)
    partial = torch.empty((*split_shape, tile, shape["DVP"]), dtype=torch.float32, device=q.device)
    decode_kernel[(rows, kv_heads, splits)](
        q,
        k_cache,
        v_cache,
        block_tables,
        context_lens,
        out,
        sums,
        partial,
        *numbers,
        *strides,
        **shape,
        **flags,
        M=tile,
        SPLITS=splits,
        STAGES=2,
    )
    if splits > 1:
        combine_kernel[(rows, heads)](
            sums,
            partial,
            out,
            out.stride(0),
            out.stride(1),
            G=shape["G"],
            DV=shape["DV"],
            DVP=shape["DVP"],
            M=tile,
            SPLITS=splits,
            SPLITSP=triton.next_power_of_2(splits),
        )


def _power_of_two(number: int) -> int:
    """The largest one that isn't above a number, at least 1."""
    return 1 << max(0, number.bit_length() - 1)
