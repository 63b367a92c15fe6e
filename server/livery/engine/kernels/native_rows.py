"""Typed calls into the compiled row kernels: norm, rotary positions, activation. Part of native.py's class."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

_INT = ctypes.c_int64


class _RopeStruct(ctypes.Structure):
    """Mirrors `RopeCall` in rows.cpp."""

    _fields_ = tuple(
        (name, _INT)
        for name in (
            *("q", "k", "v", "q_row", "k_row", "v_row", "cos", "sin", "slots", "k_cache", "v_cache"),
            *("rows", "heads", "kv_heads", "dim", "v_dim", "capacity"),
        )
    )


class NativeRows:
    """What a decoder computes between its products. Shapes and meaning are documented in reference.py."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._rms_norm = loaded.livery_rms_norm
        self._rms_norm.argtypes = (*(_INT,) * 6, ctypes.c_float, *(_INT,) * 4)
        self._rms_norm.restype = None
        self._rope = loaded.livery_rope
        self._rope.argtypes, self._rope.restype = (ctypes.c_void_p,), _INT
        self._silu_mul = loaded.livery_silu_mul
        self._silu_mul.argtypes, self._silu_mul.restype = (_INT,) * 5, None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        """`x / rms(x) * weight` over the last axis; `residual` is added to x first, in place. fp32 on the CPU."""
        d = x.shape[-1]
        _check(x, weight)
        if weight.shape != (d,) or (residual is not None and (x.dim() != 2 or residual.shape != x.shape)):
            raise ValueError(f"x {list(x.shape)}, weight {list(weight.shape)} and residual do not fit together")
        if residual is not None:
            _check(residual)
        y = torch.empty(x.shape, dtype=x.dtype)
        self._rms_norm(
            x.data_ptr(),
            x.stride(0),
            x.stride(1) if x.dim() == 3 else d,
            0 if residual is None else residual.data_ptr(),
            0 if residual is None else residual.stride(0),
            weight.data_ptr(),
            eps,
            x.shape[0],
            x.shape[1] if x.dim() == 3 else 1,
            d,
            y.data_ptr(),
        )
        return y

    def rope(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
    ) -> None:
        """Turn q and k by their positions, in place, and put k and v into the cache. fp32 on the CPU."""
        _check(q, k, v, cos, sin, k_cache, v_cache)
        rows, heads, dim = q.shape
        blocks, block_size, kv_heads, v_dim = v_cache.shape
        together = (q.stride(1), k.stride(1), v.stride(1)) == (dim, dim, v_dim)
        whole = all(tensor.is_contiguous() for tensor in (cos, sin, k_cache, v_cache, slots))
        shapes = (k.shape, v.shape, cos.shape, sin.shape, k_cache.shape)
        half = (rows, dim // 2)
        if not together or not whole or slots.dtype is not torch.int64 or slots.shape != (rows,) or dim % 2:
            raise ValueError("rope needs heads side by side, contiguous angles and caches, int64 slots, an even width")
        if shapes != ((rows, kv_heads, dim), (rows, kv_heads, v_dim), half, half, (*v_cache.shape[:3], dim)):
            raise ValueError(f"q {list(q.shape)} does not fit k, v, cos, sin and keys {[list(s) for s in shapes]}")
        call = _RopeStruct(
            *(tensor.data_ptr() for tensor in (q, k, v)),
            *(tensor.stride(0) for tensor in (q, k, v)),
            *(tensor.data_ptr() for tensor in (cos, sin, slots, k_cache, v_cache)),
            *(rows, heads, kv_heads, dim, v_dim, blocks * block_size),
        )
        misfit = self._rope(ctypes.addressof(call))
        if misfit >= 0:
            raise ValueError(f"row {misfit} has slot {int(slots[misfit])} of a cache of {blocks * block_size}")

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """`silu(gate) * up` for gate_up [rows, 2 f]; [rows, f], a new tensor. fp32 on the CPU."""
        _check(gate_up)
        rows, width = gate_up.shape
        if width % 2:
            raise ValueError(f"gate_up needs two halves, got {width} columns")
        y = gate_up.new_empty((rows, width // 2))
        self._silu_mul(gate_up.data_ptr(), gate_up.stride(0), rows, width // 2, y.data_ptr())
        return y


def _check(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_cpu or tensor.stride(-1) != 1:
            raise ValueError(
                f"row kernels need fp32 on the CPU, contiguous in the last axis, got {tensor.dtype} on {tensor.device}"
            )
