"""A step's slices as one flat list of rows: which tokens they compute, under which adapter, and which give logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from livery.engine.adjusting import NEVER, upload
from livery.engine.lora.bank import Segment
from livery.engine.plan import SequenceSlice


@dataclass(frozen=True, slots=True)
class StepRows:
    """Token and position of every row, the rows `kept` for the head, and the segments of adapters in both."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    head_segments: list[Segment] = field(default_factory=list)

    @classmethod
    def of(cls, slices: Sequence[SequenceSlice]) -> StepRows:
        """Kept are the slices' sampled rows in order, and behind them those before their scored tokens."""
        rows = cls()
        for part in slices:
            end = part.start + len(part.token_ids)
            first, first_kept = len(rows.tokens), len(rows.kept)
            rows.tokens.extend(part.token_ids)
            rows.positions.extend(range(part.start, end))
            rows.kept.extend(range(len(rows.tokens) - len(part.samples), len(rows.tokens)))
            if part.adapter is not None:
                first += max(0, part.adapter_start - part.start)
                first_kept += max(0, part.adapter_start - (end - len(part.samples)))
                _extend(rows.segments, part.adapter, first, len(rows.tokens))
                _extend(rows.head_segments, part.adapter, first_kept, len(rows.kept))
        rows._keep_scored(slices)
        return rows

    def _keep_scored(self, slices: Sequence[SequenceSlice]) -> None:
        first = 0
        for part in slices:
            if part.scored:
                begin = first + part.scored_from
                under_adapter = len(self.kept) + max(0, part.adapter_start - part.start - part.scored_from)
                self.kept.extend(range(begin, begin + len(part.scored)))
                if part.adapter is not None:
                    _extend(self.head_segments, part.adapter, under_adapter, len(self.kept))
            first += len(part.token_ids)


def _extend(segments: list[Segment], digest: str, start: int, end: int) -> None:
    """Append rows of an adapter; slices come ordered by adapter, so its rows grow into one segment."""
    if start >= end:
        return
    if segments and segments[-1].digest == digest and segments[-1].end == start:
        start = segments.pop().start
    segments.append(Segment(digest, start, end))


@dataclass(frozen=True, slots=True)
class Widths:
    """How many logits of each row are its own: the base's, and behind them those of its adapter's own tokens.

    Rows are chosen from and scored at their own width, and so come to the same bits beside whomever.
    """

    base: int
    rows: tuple[int, ...]

    def cut(self, start: int, end: int | None = None) -> Widths:
        """Those of rows [start, end)."""
        return Widths(self.base, self.rows[start:end])

    def picked(self, rows: Sequence[int]) -> Widths:
        return Widths(self.base, tuple(self.rows[row] for row in rows))

    def groups(self) -> list[tuple[int, list[int]]]:
        """The rows of each width."""
        found: dict[int, list[int]] = {}
        for row, width in enumerate(self.rows):
            found.setdefault(width, []).append(row)
        return list(found.items())

    def bounded(self, logits: Tensor) -> Tensor:
        """`logits` [rows, widest], in place, with minus infinity for tokens that a row's adapter doesn't have."""
        columns = torch.arange(self.base, logits.shape[-1], device=logits.device)
        beyond = columns >= upload(self.rows, logits, torch.int64)[:, None]
        logits[:, self.base :].masked_fill_(beyond, NEVER)
        return logits
