"""Adapter weights in device memory, packed as the modules read them, and the step's use of them.

An adapter is packed once, off the step loop, and then only installed or evicted. Which rows of a step belong to
which adapter is told anew each step, by digest: nothing here outlives a step but the weights themselves.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from livery.engine.kernels import AdapterGroup, GroupSegments, Weight
from livery.engine.kernels.tables import AdapterRecord, DeviceTables, StepTable
from livery.engine.lora.parts import BiasOf, PackedGroup, Packer, low_rank
from livery_adapters.canonical import (
    CanonicalAdapter,
    EmbeddingChange,
    ExpertsChange,
    LinearChange,
    LowRank,
    Rows,
    SharedBasis,
)
from livery_adapters.effect import AdapterEffect
from livery_adapters.tasks import HEAD


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """One projection group: its members' module paths, their columns, and the shared input width."""

    members: tuple[str, ...]
    columns: tuple[slice, ...]
    in_features: int
    is_head: bool


@dataclass(frozen=True, slots=True)
class PackedEmbedding:
    """A changed embedding: y = gain ⊙ (W'[id] + scale · A[id]·B), with A [vocabulary, rank] and B [rank, dim]."""

    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0
    weight: Weight | None = None
    rows: Rows | None = None
    gain: Tensor | None = None  # [dim]
    added: Tensor | None = None  # [added, dim], complete: of the ids behind the base's


Unit = int | str  # a part of the model: a projection group's index, or the path of another module or parameter


class Arrival(Protocol):
    """An adapter's weights on their way to the device."""

    def done(self) -> bool:
        """Whether everything has arrived."""
        ...

    def wait(self, unit: Unit) -> None:
        """Let what is computed from now on come after the arrival of what a part of the model needs."""
        ...


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """One version, ready to be applied: low-rank deltas at their true ranks, in the dtype of its file."""

    digest: str
    groups: Mapping[int, AdapterGroup]  # low-rank deltas by index of the projection group
    linears: Mapping[int, PackedGroup]  # the other parts, likewise
    embeddings: Mapping[str, PackedEmbedding]
    experts: Mapping[str, ExpertsChange]  # by path of the parameter
    plain: Mapping[str, Mapping[str, Tensor]]
    effect: AdapterEffect
    head: Tensor | None = None  # a classifier's, [labels, hidden]
    added_tokens: int = 0  # beyond the base's vocabulary
    arrival: Arrival | None = None  # while its weights are still being copied


class Segment(NamedTuple):
    """Rows [start, end) of a step run under one adapter."""

    digest: str
    start: int
    end: int


def pack(
    adapter: CanonicalAdapter,
    effect: AdapterEffect,
    layouts: Sequence[GroupLayout],
    packer: Packer,
    bias_of: BiasOf,
) -> PackedAdapter:
    """Lay an adapter out for this model's projection groups. Runs on the loader's thread.

    Low-rank weights are kept in bf16 where the file has it, as kernels widen while they read, and otherwise in fp32,
    also where the model computes in bf16: a ΔW may be a small difference of large products (a converted PiSSA), of
    which rounding A and B would leave little. `bias_of` gives the base's bias of a linear module.
    """
    bases = [part for change in adapter.linears.values() for part in change.deltas if isinstance(part, SharedBasis)]
    packer.share_bases(bases)
    groups: dict[int, AdapterGroup] = {}
    linears: dict[int, PackedGroup] = {}
    for index, layout in enumerate(layouts):
        changes = [adapter.linears.get(member) for member in layout.members]
        if (group := _group(changes, layout, packer)) is not None:
            groups[index] = group
        biases = [bias_of(member) if change else None for change, member in zip(changes, layout.members, strict=True)]
        if (parts := packer.group(changes, layout.columns, biases)) is not None:
            linears[index] = parts
    return PackedAdapter(
        digest=adapter.digest,
        groups=groups,
        linears=linears,
        embeddings={path: _embedding(change, packer) for path, change in adapter.embeddings.items()},
        experts={path: _experts(change, packer) for path, change in adapter.experts.items()},
        plain={path: {name: packer.tensor(t) for name, t in new.items()} for path, new in adapter.plain.items()},
        effect=effect,
        head=None if adapter.head is None else packer.tensor(adapter.head, torch.float32),
        added_tokens=adapter.added_tokens,
    )


def _group(changes: Sequence[LinearChange | None], layout: GroupLayout, packer: Packer) -> AdapterGroup | None:
    parts = [low_rank(change) for change in changes]
    if not any(parts):
        return None
    keep_half = all(part is None or _is_bf16(part) for part in parts)
    return AdapterGroup(
        [part.a.to(packer.device) if part else None for part in parts],
        [part.b.to(packer.device) if part else None for part in parts],
        [part.scale if part else 0.0 for part in parts],
        [columns.start for columns in layout.columns],
        layout.in_features,
        torch.bfloat16 if keep_half else torch.float32,
    )


def _is_bf16(part: LowRank | ExpertsChange) -> bool:
    return part.a.dtype == part.b.dtype == torch.bfloat16


def _held_dtype(part: LowRank | ExpertsChange) -> torch.dtype:
    """bf16 where the file has it, fp32 otherwise: nothing is rounded."""
    return torch.bfloat16 if _is_bf16(part) else torch.float32


def _embedding(change: EmbeddingChange, packer: Packer) -> PackedEmbedding:
    delta = change.delta
    return PackedEmbedding(
        a=None if delta is None else packer.tensor(delta.a.t(), _held_dtype(delta)),
        b=None if delta is None else packer.tensor(delta.b.t(), _held_dtype(delta)),
        scale=0.0 if delta is None else delta.scale,
        weight=None if change.weight is None else packer.weight(change.weight),
        rows=packer.part(change.rows) if change.rows is not None and len(change.rows.ids) else None,
        gain=None if change.gain is None else packer.tensor(change.gain),
        added=None if change.added is None else packer.tensor(change.added),
    )


def _experts(change: ExpertsChange, packer: Packer) -> ExpertsChange:
    """Only the experts that a step hits are widened."""
    dtype = _held_dtype(change)
    return replace(change, a=packer.tensor(change.a, dtype), b=packer.tensor(change.b, dtype))


def tables_of(layouts: Sequence[GroupLayout], device: torch.device) -> DeviceTables:
    """Tables of a step's adapters for kernels that read them on the device."""
    outs = [[columns.stop - columns.start for columns in layout.columns] for layout in layouts]
    return DeviceTables(outs, [index for index, layout in enumerate(layouts) if layout.is_head], device)


Held = Sequence[tuple[Segment, PackedAdapter]]


class AdapterBank:
    """The packed adapters of one model. Written only by the runner."""

    def __init__(
        self, layouts: Sequence[GroupLayout], tables: DeviceTables | None = None, one_by_one: bool = False
    ) -> None:
        """With `tables` the kernels learn on the device what a step's rows run under.

        `one_by_one`: parts that are computed by torch see one row at a time (parts.by_rows).
        """
        self.layouts = tuple(layouts)
        self.one_by_one = one_by_one
        self._step_tables = tables
        self._adapters: dict[str, PackedAdapter] = {}
        self._addresses: dict[str, array[int] | None] = {}  # of what each adapter does in the layers
        self._rows: Held = ()
        self._head_rows: Held = ()
        self._segments: dict[int, GroupSegments | None] = {}
        self._arriving: list[Arrival] = []  # of adapters of the step, whose weights are still being copied
        # Whether any adapter of the step has more than low-rank deltas of linear modules; most steps have none.
        self.has_linears = self.has_plain = self.has_experts = False

    def install(self, adapter: PackedAdapter) -> None:
        self._adapters[adapter.digest] = adapter
        self._addresses[adapter.digest] = _addresses(adapter, len(self.layouts))
        if self._step_tables is not None:
            self._step_tables.install(adapter.digest, adapter.groups)

    def evict(self, digest: str) -> None:
        del self._adapters[digest], self._addresses[digest]
        if self._step_tables is not None:
            self._step_tables.evict(digest)

    def effect(self, digest: str) -> AdapterEffect:
        return self._adapters[digest].effect

    def head(self, digest: str) -> Tensor | None:
        """A version's own head for classification, [labels, hidden]."""
        self._await(HEAD)
        return self._adapters[digest].head

    def activate(self, rows: Sequence[Segment], head_rows: Sequence[Segment]) -> None:
        """Say which rows of the coming forward run under which adapter; the head sees only the kept rows."""
        self._rows = [(segment, self._adapters[segment.digest]) for segment in rows]
        self._head_rows = [(segment, self._adapters[segment.digest]) for segment in head_rows]
        self._segments = {}
        if self._step_tables is not None:
            self._step_tables.activate(rows, head_rows)
        arrivals = map(self._arrival, {segment.digest for segment in (*rows, *head_rows)})
        self._arriving = [arrival for arrival in arrivals if arrival is not None]
        self.has_linears = any(adapter.linears for _, adapter in self._rows)
        self.has_plain = any(adapter.plain for _, adapter in self._rows)
        self.has_experts = any(adapter.experts for _, adapter in self._rows)

    def segments(self, group: int) -> GroupSegments | None:
        """The step's low-rank segments of one projection group, or None when no adapter of the step has any."""
        if self._step_tables is not None:
            self._await(group)
            return self._step_tables.segments(group)
        if group not in self._segments:
            self._await(group)
            entries = [
                (segment.start, segment.end, part)
                for segment, adapter in self._rows_of(group)
                if (part := adapter.groups.get(group)) is not None
            ]
            self._segments[group] = GroupSegments(entries) if entries else None
        return self._segments[group]

    def widths(self, base: int, rows: int) -> list[int]:
        """How many of the step's logits are of tokens that a row's adapter has, for each row that the head sees."""
        found = [base] * rows
        for segment, adapter in self._head_rows:
            added = [group.added.weight.out_features for group in adapter.linears.values() if group.added is not None]
            found[segment.start : segment.end] = [base + sum(added)] * (segment.end - segment.start)
        return found

    def use(self, table: StepTable | None) -> None:
        """The coming forwards apply the low-rank deltas that `table` names when they run, and nothing else."""
        assert self._step_tables is not None
        self._rows = self._head_rows = ()
        self._arriving = []
        self.has_linears = self.has_plain = self.has_experts = False
        self._step_tables.use(table)

    def record(self, digest: str) -> AdapterRecord | None:
        """An adapter as a table names it, or None where a table can't say all that the adapter does.

        Nor can one say that its weights are still on their way.
        """
        adapter = self._adapters[digest]
        if self._step_tables is None or self._arrival(digest) is not None:
            return None
        if adapter.linears or adapter.plain or adapter.experts or adapter.embeddings:
            return None
        return self._step_tables.record(digest)

    def native_rows(self) -> array[int] | None:
        """The step's segments as triples of start, end and the address of a table of changes, for native code.

        None where an adapter has more in the layers' modules than low-rank deltas, gains and biases, or is still on its
        way. The addresses hold for this step.
        """
        if self._arriving:
            return None
        rows = array("q")
        for segment, adapter in self._rows:
            addresses = self._addresses[adapter.digest]
            if addresses is None:
                return None
            rows.extend((segment.start, segment.end, addresses.buffer_info()[0]))
        return rows

    def linears(self, group: int) -> list[tuple[Segment, PackedGroup]]:
        """The step's segments whose adapter has other parts than low-rank deltas in a projection group."""
        if not self.has_linears:
            return []
        self._await(group)
        return [(segment, parts) for segment, adapter in self._rows_of(group) if (parts := adapter.linears.get(group))]

    def embeddings(self, path: str) -> list[tuple[Segment, PackedEmbedding]]:
        """The step's segments whose adapter changes this embedding."""
        self._await(path)
        return [(segment, part) for segment, adapter in self._rows if (part := adapter.embeddings.get(path))]

    def plain(self, path: str) -> list[tuple[Segment, Mapping[str, Tensor]]]:
        """The step's segments whose adapter replaces parameters of this module."""
        self._await(path)
        return [(segment, parameters) for segment, adapter in self._rows if (parameters := adapter.plain.get(path))]

    def experts(self, paths: Sequence[str]) -> list[tuple[Segment, list[ExpertsChange | None]]]:
        """The step's segments whose adapter changes any of these parameters, with the change of each."""
        for path in paths:
            self._await(path)
        found = [(segment, [adapter.experts.get(path) for path in paths]) for segment, adapter in self._rows]
        return [(segment, changes) for segment, changes in found if any(changes)]

    def _arrival(self, digest: str) -> Arrival | None:
        """What a version's rows have to wait for, if anything is left of it."""
        adapter = self._adapters[digest]
        if adapter.arrival is not None and adapter.arrival.done():
            self._adapters[digest] = adapter = replace(adapter, arrival=None)
        return adapter.arrival

    def _await(self, unit: Unit) -> None:
        for arrival in self._arriving:
            arrival.wait(unit)

    def _rows_of(self, group: int) -> Held:
        return self._head_rows if self.layouts[group].is_head else self._rows


def _addresses(adapter: PackedAdapter, groups: int) -> array[int] | None:
    """Per projection group the addresses of the low-rank group, the gain and the shift, 0 for what there isn't.

    None where the adapter has something in the layers' modules that these don't say.
    """
    if adapter.plain or adapter.experts or any(parts.members for parts in adapter.linears.values()):
        return None
    table = array("q")
    for index in range(groups):
        low_rank, parts = adapter.groups.get(index), adapter.linears.get(index)
        vectors = (None, None) if parts is None else (parts.gain, parts.shift)
        table.append(low_rank.address if low_rank is not None else 0)
        table.extend(0 if vector is None else vector.data_ptr() for vector in vectors)
    return table
