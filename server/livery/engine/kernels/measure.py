"""Sums over an adapter's weights by the compiled kernels (livery_adapters.sums.Sums). Calls release the GIL."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from livery_adapters.sums import Pair, PairSums, TorchSums

_DTYPES = (torch.float32, torch.bfloat16)


class _ValuesStruct(ctypes.Structure):
    """Mirrors `Values` in measure.cpp."""

    _fields_ = (
        ("data", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("is_bf16", ctypes.c_int64),
        ("sum", ctypes.c_double),
    )


class _PairStruct(ctypes.Structure):
    """Mirrors `Pair` in measure.cpp."""

    _fields_ = (
        ("a", ctypes.c_int64),
        ("b", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("is_bf16", ctypes.c_int64),
        ("product", ctypes.c_double),
        ("bound", ctypes.c_double),
    )


class NativeSums:
    """All tensors of a call in one pass; those that the native code isn't made for by torch."""

    def __init__(self, library: Path) -> None:
        """Load a library made by build.py. Raises OSError."""
        loaded = ctypes.CDLL(str(library))
        self._squares = loaded.livery_squares
        self._squares.argtypes, self._squares.restype = (ctypes.c_void_p, ctypes.c_int64), None
        self._pairs = loaded.livery_low_rank_squares
        self._pairs.argtypes, self._pairs.restype = (ctypes.c_void_p, ctypes.c_int64), None
        self._threads = loaded.livery_threads_here
        self._threads.argtypes, self._threads.restype = (ctypes.c_int64,), None
        self._torch = TorchSums()

    def squares(self, tensors: Sequence[Tensor]) -> list[float]:
        own = [tensor for tensor in tensors if _fits(tensor)]
        table = (_ValuesStruct * len(own))(
            *(_ValuesStruct(t.data_ptr(), t.numel(), t.dtype is torch.bfloat16) for t in own)
        )
        self._squares(table, len(own))
        found = iter(table)
        return [next(found).sum if _fits(tensor) else self._torch.squares([tensor])[0] for tensor in tensors]

    def low_rank(self, pairs: Sequence[Pair]) -> list[PairSums]:
        own = [pair for pair in pairs if _pair_fits(*pair)]
        table = (_PairStruct * len(own))(
            *(
                _PairStruct(a.data_ptr(), b.data_ptr(), len(a), a.shape[1], len(b), a.dtype is torch.bfloat16)
                for a, b in own
            )
        )
        self._pairs(table, len(own))
        found = iter(table)
        return [_sums(next(found)) if _pair_fits(*pair) else self._torch.low_rank([pair])[0] for pair in pairs]

    def use_threads(self, count: int) -> None:
        """How many threads work that the calling thread starts may use from now on, torch's included."""
        self._threads(count)


def _fits(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype in _DTYPES and tensor.is_contiguous()


def _pair_fits(a: Tensor, b: Tensor) -> bool:
    return a.dim() == b.dim() == 2 and a.dtype is b.dtype and _fits(a) and _fits(b)


def _sums(pair: _PairStruct) -> PairSums:
    return PairSums(pair.product, pair.bound)
