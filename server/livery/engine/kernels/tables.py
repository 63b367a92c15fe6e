"""What the grouped adapter kernels read on the device: one record per adapter, one small table per step.

A record says for every projection group of the model where an adapter's weights lie, at which ranks; it is written
once, when the adapter comes into device memory. A step's table says which rows run under which record. So the host
sends a few hundred bytes per step whatever the number of layers, and a captured graph takes any mix of adapters.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from livery.engine.kernels.group import AdapterGroup, GroupSegments

HEADER, PER_SLICE = 4, 6  # words, as cuda/lora_kernels.py reads them
PER_TILE = 3
FEW_ROWS, MANY_ROWS = 16, 64  # rows of a tile: decoding, reading prompts
ALIGNMENT = 16  # bytes of an address; also of elements of a row, which is more than needed


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One adapter as the device sees it, [groups, words] int64. Keeps nothing alive but itself."""

    words: Tensor
    rank: int  # the largest total rank of any group
    is_aligned: bool  # whether every row of every weight starts at a multiple of 16 bytes

    @classmethod
    def of(cls, groups: Mapping[int, AdapterGroup], count: int, members: int, device: torch.device) -> AdapterRecord:
        """`groups` by index below `count`; a group that the adapter doesn't change is all zeros."""
        width = HEADER + PER_SLICE * members
        words: list[int] = []
        for index in range(count):
            found = _group_words(groups[index]) if index in groups else []
            words += found + [0] * (width - len(found))
        rank = max((group.total_rank for group in groups.values()), default=0)
        return cls(upload(words, device).view(count, width), rank, all(map(_is_aligned, groups.values())))


def upload(words: Sequence[int], device: torch.device) -> Tensor:
    """int64 words on the device, without waiting for what it is busy with."""
    host = torch.tensor(words, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def _group_words(group: AdapterGroup) -> list[int]:
    first = group.memory.data_ptr()
    words = [first, group.total_rank, int(group.dtype != torch.float32), len(group.members)]
    for part in group.members:
        (scale,) = struct.unpack("i", struct.pack("f", part.scale))
        words += [first + part.start, part.first_rank, part.rank, part.out, part.offset, scale]
    return words


def _is_aligned(group: AdapterGroup) -> bool:
    first = group.memory.data_ptr()
    starts = [first, *(first + part.start for part in group.members)]
    widths = [group.in_features, *(width for part in group.members for width in (part.out, part.offset))]
    return all(number % ALIGNMENT == 0 for number in starts + widths)


def tile_rows(segments: Sequence[tuple[int, int, AdapterRecord]]) -> int:
    """Rows per tile that suit these (start, end, record): tall tiles as soon as one segment is long."""
    return FEW_ROWS if all(end - start <= 4 * FEW_ROWS for start, end, _ in segments) else MANY_ROWS


def table_words(segments: Sequence[tuple[int, int, AdapterRecord]], rows: int) -> list[int]:
    """A step's table: the number of tiles, then (first row, end, address of the record) of each."""
    words = [0]
    for start, end, record in segments:
        address = record.words.data_ptr()
        for first in range(start, end, rows):
            words += (first, min(first + rows, end), address)
    words[0] = (len(words) - 1) // PER_TILE
    return words


@dataclass(frozen=True, slots=True)
class StepTable:
    """A step's table in device memory, with the bounds that launches are sized by."""

    words: Tensor  # int64 [1 + 3 * tiles]
    tiles: int  # at most so many
    tile_rows: int
    rank: int  # at most so large a total rank in any group
    is_aligned: bool  # all records are
    records: tuple[AdapterRecord, ...] = ()  # kept alive as long as the table

    @classmethod
    def of(cls, segments: Sequence[tuple[int, int, AdapterRecord]], device: torch.device) -> StepTable:
        rows = tile_rows(segments)
        words = table_words(segments, rows)
        rank = max((record.rank for _, _, record in segments), default=0)
        records = tuple(record for _, _, record in segments)
        return cls(
            torch.tensor(words, dtype=torch.int64, device=device),
            words[0],
            rows,
            rank,
            all(record.is_aligned for record in records),
            records,
        )


class DeviceSegments(GroupSegments):
    """A step's segments of one projection group: the step's table, and the group's place in the records."""

    __slots__ = ("group", "members", "step", "widest")

    def __init__(self, step: StepTable, group: int, members: int, widest: int) -> None:
        """`members` is what the records have room for, `widest` the most output columns of one member."""
        self.entries = ()
        self.step = step
        self.group = group
        self.members = members
        self.widest = widest

    @classmethod
    def from_entries(cls, entries: Sequence[tuple[int, int, AdapterGroup]], device: torch.device) -> DeviceSegments:
        """Of groups that have no record yet: one is made for each, which costs a copy."""
        members = max((len(group.members) for _, _, group in entries), default=1)
        segments = [(start, end, AdapterRecord.of({0: group}, 1, members, device)) for start, end, group in entries]
        widest = max((part.out for _, _, group in entries for part in group.members), default=1)
        return cls(StepTable.of(segments, device), 0, members, widest)


class DeviceTables:
    """The records of every adapter in device memory, and the table of the step under way.

    `outs` are the output columns of each projection group's members; groups of the head see other rows than the
    rest of the model.
    """

    def __init__(self, outs: Sequence[Sequence[int]], heads: Collection[int], device: torch.device) -> None:
        self._widest = [max(widths) for widths in outs]
        self._members = max(map(len, outs))
        self._heads = frozenset(heads)
        self._device = device
        self._records: dict[str, AdapterRecord] = {}
        self._step: StepTable | None = None
        self._head_step: StepTable | None = None

    def install(self, digest: str, groups: Mapping[int, AdapterGroup]) -> None:
        self._records[digest] = AdapterRecord.of(groups, len(self._widest), self._members, self._device)

    def evict(self, digest: str) -> None:
        del self._records[digest]

    def record(self, digest: str) -> AdapterRecord:
        return self._records[digest]

    def activate(self, rows: Sequence[tuple[str, int, int]], head_rows: Sequence[tuple[str, int, int]]) -> None:
        """Say which rows (digest, start, end) of the coming forward run under which adapter."""
        self._step = self._table(rows)
        self._head_step = self._step if head_rows == rows else self._table(head_rows)

    def use(self, step: StepTable | None) -> None:
        """The coming forwards do what this table says when they run, the head on the same rows; None: base only."""
        self._step = self._head_step = step

    def segments(self, group: int) -> DeviceSegments | None:
        """The step's segments of one projection group, or None when no row of the step has an adapter."""
        step = self._head_step if group in self._heads else self._step
        return None if step is None else DeviceSegments(step, group, self._members, self._widest[group])

    def _table(self, rows: Sequence[tuple[str, int, int]]) -> StepTable | None:
        found = [(start, end, self._records[digest]) for digest, start, end in rows]
        return StepTable.of(found, self._device) if found else None
