"""Packed adapter weights of one projection group, and which rows of a step use which of them.

A projection group is the set of linear modules that read the same input: q/k/v, gate/up, or one module alone.
Owns the memory the kernels read (true ranks, nothing padded) and the descriptors that point at it. Knows no
model, no adapter format and no scheduler.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16)


class _SliceStruct(ctypes.Structure):
    """Mirrors `LoraSlice` in lora.cpp."""

    _fields_ = (
        ("b", ctypes.c_int64),
        ("first_rank", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("out", ctypes.c_int64),
        ("offset", ctypes.c_int64),
    )


class _GroupStruct(ctypes.Structure):
    """Mirrors `LoraGroup` in lora.cpp."""

    _fields_ = (
        ("a", ctypes.c_int64),
        ("rank_scales", ctypes.c_int64),
        ("slices", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("total_rank", ctypes.c_int64),
        ("n_slices", ctypes.c_int64),
        ("is_bf16", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class LoraSlice:
    """One member of a group: `y[:, offset:offset+out] += scale * (x A^T) B`, with B as [rank, out]."""

    first_rank: int  # its rows of the group's stacked A start here
    rank: int
    scale: float
    offset: int
    b: Tensor


class AdapterGroup:
    """One adapter's low-rank weights for one projection group. Immutable; free it by dropping it.

    `a` is [R, in_features] with R the sum of the true ranks; each slice's B is [rank, out_features].
    Members the adapter does not target take no memory. `address` stays valid as long as the object lives.
    """

    __slots__ = (
        "_rank_scales",
        "_slice_structs",
        "_struct",
        "a",
        "address",
        "in_features",
        "nbytes",
        "out_features",
        "slices",
    )

    def __init__(
        self,
        a_slices: Sequence[Tensor | None],
        b_slices: Sequence[Tensor | None],
        scales: Sequence[float],
        offsets: Sequence[int],
        in_features: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Pack A as [rank_i, in_features] and B as [out_i, rank_i] (PEFT's layout), `None` where absent.

        `offsets[i]` is the member's first column in the group's output. Raises ValueError on shapes that
        do not fit together, a group without any rank, or a dtype other than fp32 and bf16.
        """
        if dtype not in _DTYPES:
            raise ValueError(f"adapter weights must be float32 or bfloat16, got {dtype}")
        if not len(a_slices) == len(b_slices) == len(scales) == len(offsets):
            raise ValueError("a_slices, b_slices, scales and offsets must have one entry per member")
        stacked: list[Tensor] = []
        slices: list[LoraSlice] = []
        first_rank = 0
        for a, b, scale, offset in zip(a_slices, b_slices, scales, offsets, strict=True):
            rank = _checked_rank(a, b, in_features, offset)
            if a is None or b is None or rank == 0:
                continue
            stacked.append(a.to(dtype))
            slices.append(LoraSlice(first_rank, rank, float(scale), offset, _transposed(b, dtype)))
            first_rank += rank
        if not slices:
            raise ValueError("an adapter group needs at least one member with a rank above 0")
        self.a = torch.cat(stacked).contiguous()
        self.slices = tuple(slices)
        self.in_features = in_features
        self.out_features = max(s.offset + s.b.shape[1] for s in slices)  # columns a y must have
        tensors = [self.a, *(s.b for s in slices)]
        self.nbytes = sum(t.numel() * t.element_size() for t in tensors)
        self._slice_structs = (_SliceStruct * len(slices))(
            *(_SliceStruct(s.b.data_ptr(), s.first_rank, s.rank, s.b.shape[1], s.offset) for s in slices)
        )
        self._rank_scales = (ctypes.c_float * first_rank)(*(s.scale for s in slices for _ in range(s.rank)))
        self._struct = _GroupStruct(
            self.a.data_ptr(),
            ctypes.addressof(self._rank_scales),
            ctypes.addressof(self._slice_structs),
            in_features,
            first_rank,
            len(slices),
            int(dtype == torch.bfloat16),
        )
        self.address = ctypes.addressof(self._struct)

    @property
    def total_rank(self) -> int:
        return self.a.shape[0]


class GroupSegments:
    """Which contiguous rows of a step use which adapter group, for one projection group of one layer.

    `entries` are (start, end, group) with `0 <= start <= end`; ranges must not overlap. Rows in no entry have
    no adapter and are never touched. Build it once per step and projection group; it keeps the groups alive.
    """

    __slots__ = ("address", "entries", "table")

    def __init__(self, entries: Sequence[tuple[int, int, AdapterGroup]]) -> None:
        self.entries = entries
        flat: list[int] = []
        for start, end, group in entries:
            flat += (start, end, group.address)
        self.table = array("q", flat)
        self.address = self.table.buffer_info()[0]

    def __len__(self) -> int:
        return len(self.entries)


def _transposed(b: Tensor, dtype: torch.dtype) -> Tensor:
    """B as [rank, out] in memory of its own: it must outlive the file it was read from, and start aligned."""
    return torch.empty((b.shape[1], b.shape[0]), dtype=dtype, device=b.device).copy_(b.t())


def _checked_rank(a: Tensor | None, b: Tensor | None, in_features: int, offset: int) -> int:
    if a is None and b is None:
        return 0
    if a is None or b is None:
        raise ValueError("a member needs both A and B, or neither")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != in_features or a.shape[0] != b.shape[1]:
        raise ValueError(
            f"A {list(a.shape)} and B {list(b.shape)} do not fit: expected [rank, {in_features}] and [out, rank]"
        )
    if offset < 0:
        raise ValueError(f"output offset {offset} is negative")
    return a.shape[0]
