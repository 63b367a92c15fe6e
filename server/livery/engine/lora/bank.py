"""Adapter weights in device memory, packed as the linear modules read them, and the step's use of them.

An adapter is packed once, off the step loop, and then only installed or evicted. Which rows of a step belong to
which adapter is told anew each step, by digest: nothing here outlives a step but the weights themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from livery.engine.kernels import AdapterGroup, GroupSegments
from livery_adapters.canonical import CanonicalAdapter, LinearChange, LowRank


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """One projection group: its members' module paths, their first output columns, and the shared input width."""

    members: tuple[str, ...]
    offsets: tuple[int, ...]
    in_features: int
    is_head: bool


@dataclass(frozen=True, slots=True)
class PackedEmbedding:
    """A low-rank change of an embedding: rows of A [vocabulary, rank] times B [rank, dim], scale folded in at use."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """One version, ready to be applied: at its true ranks, in the dtype of its file where kernels read it."""

    digest: str
    groups: Mapping[int, AdapterGroup]  # by index of the projection group
    embeddings: Mapping[str, PackedEmbedding]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, end) of a step run under one adapter."""

    digest: str
    start: int
    end: int


def pack(
    adapter: CanonicalAdapter, layouts: Sequence[GroupLayout], device: torch.device, compute: torch.dtype
) -> PackedAdapter:
    """Lay an adapter out for this model's projection groups. Runs on the loader's thread.

    Weights are kept in bf16 where the model computes in it, and where the file has it: kernels widen as they read.
    """
    groups: dict[int, AdapterGroup] = {}
    for index, layout in enumerate(layouts):
        parts = [_low_rank(adapter.linears.get(member)) for member in layout.members]
        if not any(parts):
            continue
        keep_half = compute is torch.bfloat16 or all(part is None or _is_bf16(part) for part in parts)
        groups[index] = AdapterGroup(
            [part.a.to(device) if part else None for part in parts],
            [part.b.to(device) if part else None for part in parts],
            [part.scale if part else 0.0 for part in parts],
            layout.offsets,
            layout.in_features,
            torch.bfloat16 if keep_half else torch.float32,
        )
    embeddings = {
        path: PackedEmbedding(
            part.a.t().to(device, compute).contiguous(), part.b.t().to(device, compute).contiguous(), part.scale
        )
        for path, change in adapter.embeddings.items()
        if (part := change.delta) is not None
    }
    nbytes = sum(group.nbytes for group in groups.values())
    nbytes += sum(part.a.nbytes + part.b.nbytes for part in embeddings.values())
    return PackedAdapter(adapter.digest, groups, embeddings, nbytes)


def _low_rank(change: LinearChange | None) -> LowRank | None:
    return next((part for part in change.deltas if isinstance(part, LowRank)), None) if change else None


def _is_bf16(part: LowRank) -> bool:
    return part.a.dtype == part.b.dtype == torch.bfloat16


class AdapterBank:
    """The packed adapters of one model. Written only by the runner."""

    def __init__(self, layouts: Sequence[GroupLayout]) -> None:
        self.layouts = tuple(layouts)
        self._adapters: dict[str, PackedAdapter] = {}
        self._rows: Sequence[Segment] = ()
        self._head_rows: Sequence[Segment] = ()
        self._segments: dict[int, GroupSegments | None] = {}

    def install(self, adapter: PackedAdapter) -> None:
        self._adapters[adapter.digest] = adapter

    def evict(self, digest: str) -> None:
        del self._adapters[digest]

    def activate(self, rows: Sequence[Segment], head_rows: Sequence[Segment]) -> None:
        """Say which rows of the coming forward run under which adapter; the head sees only the kept rows."""
        self._rows = rows
        self._head_rows = head_rows
        self._segments = {}

    def segments(self, group: int) -> GroupSegments | None:
        """The step's segments of one projection group, or None when no adapter of the step touches it."""
        if group not in self._segments:
            self._segments[group] = self._build(group)
        return self._segments[group]

    def embeddings(self, path: str) -> list[tuple[Segment, PackedEmbedding]]:
        """The step's segments whose adapter changes this embedding."""
        return [
            (segment, part)
            for segment in self._rows
            if (part := self._adapters[segment.digest].embeddings.get(path)) is not None
        ]

    def _build(self, group: int) -> GroupSegments | None:
        rows = self._head_rows if self.layouts[group].is_head else self._rows
        entries = [
            (segment.start, segment.end, packed)
            for segment in rows
            if (packed := self._adapters[segment.digest].groups.get(group)) is not None
        ]
        return GroupSegments(entries) if entries else None
