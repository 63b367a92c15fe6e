"""Packed adapter weights of one projection group, and which rows of a step use which of them.

A projection group is the set of linear modules that read the same input: q/k/v, gate/up, or one module alone.
A group's weights are one stretch of bytes, so that they can lie in memory of their own, in an adapter's image or in
an arena on the device, and one copy moves them:

    A [R, in_features] | B of the first member [rank, out] | B of the next … | scale of each rank, fp32 [R]

R is the sum of the members' true ranks (nothing is padded), their A are stacked in A, and each part starts at a
multiple of ALIGNMENT bytes. Weights are fp32 or bf16, all of a group alike. Knows no model, no adapter format and no
scheduler.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16)

ALIGNMENT = 64  # bytes: a cache line, and more than the widest load of any device


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


@dataclass(frozen=True, slots=True)
class Member:
    """A slice by numbers alone: its B is [rank, out] and begins at byte `start` of its group's memory."""

    first_rank: int
    rank: int
    scale: float
    offset: int
    out: int
    start: int


class AdapterGroup:
    """One adapter's low-rank weights for one projection group. Immutable; free it by dropping it.

    `a` is [R, in_features] with R the sum of the true ranks; each slice's B is [rank, out_features]; `rank_scales`
    [R] is the scale of each row of `a`, in fp32. All are views of `memory`, bytes laid out as the module says; they are
    made when somebody asks for them, as kernels go by `address`, or by `members` and where `memory` begins. Members the
    adapter does not target take no memory. `address` stays valid as long as the object lives.
    """

    __slots__ = (
        "_scales_start",
        "_slice_structs",
        "_slices",
        "_struct",
        "address",
        "dtype",
        "in_features",
        "members",
        "memory",
        "nbytes",
        "out_features",
        "total_rank",
    )
    _slices: tuple[LoraSlice, ...] | None

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
        sources: list[tuple[Tensor, Tensor]] = []
        found: list[tuple[int, int, float, int, int]] = []
        first_rank = 0
        for a, b, scale, offset in zip(a_slices, b_slices, scales, offsets, strict=True):
            rank = _checked_rank(a, b, in_features, offset)
            if a is None or b is None or rank == 0:
                continue
            sources.append((a, b))
            found.append((first_rank, rank, float(scale), offset, int(b.shape[0])))
            first_rank += rank
        if not found:
            raise ValueError("an adapter group needs at least one member with a rank above 0")
        self.dtype = dtype
        self.in_features = in_features
        self.total_rank = first_rank
        self.out_features = max(offset + out for *_, offset, out in found)  # columns a y must have
        end = _aligned(first_rank * in_features * dtype.itemsize)
        members = []
        for first, rank, scale, offset, out in found:
            members.append(Member(first, rank, scale, offset, out, end))
            end += _aligned(rank * out * dtype.itemsize)
        self.members = tuple(members)
        self._scales_start = end
        self.nbytes = end + _aligned(4 * first_rank)
        # Memory of its own also where nothing is converted: it must outlive the file it was read from.
        self._lie_in(torch.zeros(self.nbytes, dtype=torch.uint8, device=sources[0][0].device))
        stacked, rank_scales = self.a, self.rank_scales
        for (a, b), member in zip(sources, members, strict=True):
            ranks = slice(member.first_rank, member.first_rank + member.rank)
            stacked[ranks].copy_(a)
            self._matrix(member.start, member.rank, member.out).copy_(b.t())
            rank_scales[ranks] = member.scale

    def over(self, memory: Tensor) -> AdapterGroup:
        """The same group over other memory, which holds (or will hold, when it is used) the same bytes.

        `memory` is uint8 [nbytes], contiguous, and starts at a multiple of ALIGNMENT.
        """
        if memory.dtype is not torch.uint8 or memory.shape != self.memory.shape or memory.data_ptr() % ALIGNMENT:
            raise ValueError(f"a group of {self.nbytes} bytes needs as many, aligned; got {list(memory.shape)}")
        moved = object.__new__(AdapterGroup)
        for name in ("dtype", "in_features", "total_rank", "out_features", "members", "nbytes", "_scales_start"):
            setattr(moved, name, getattr(self, name))
        moved._lie_in(memory)
        return moved

    @property
    def a(self) -> Tensor:
        return self._matrix(0, self.total_rank, self.in_features)

    @property
    def rank_scales(self) -> Tensor:
        return self.memory[self._scales_start : self._scales_start + 4 * self.total_rank].view(torch.float32)

    @property
    def slices(self) -> tuple[LoraSlice, ...]:
        if self._slices is None:
            self._slices = tuple(
                LoraSlice(m.first_rank, m.rank, m.scale, m.offset, self._matrix(m.start, m.rank, m.out))
                for m in self.members
            )
        return self._slices

    def _matrix(self, start: int, rows: int, columns: int) -> Tensor:
        stretch = self.memory[start : start + rows * columns * self.dtype.itemsize]
        return stretch.view(self.dtype).view(rows, columns)

    def _lie_in(self, memory: Tensor) -> None:
        """Take `memory` for this group's and point everything at it."""
        self.memory = memory
        self._slices = None
        first = memory.data_ptr()
        structs = (_SliceStruct * len(self.members))(
            *(_SliceStruct(first + m.start, m.first_rank, m.rank, m.out, m.offset) for m in self.members)
        )
        self._slice_structs = structs
        self._struct = _GroupStruct(
            first,
            first + self._scales_start,
            ctypes.addressof(structs),
            self.in_features,
            self.total_rank,
            len(self.members),
            self.dtype is torch.bfloat16,
        )
        self.address = ctypes.addressof(self._struct)


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


def _aligned(nbytes: int) -> int:
    """Filled up to ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


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
