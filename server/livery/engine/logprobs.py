"""How likely tokens are: log_softmax of the model's own logits in fp32, one row at a time.

A token's number and the same token's number among the likeliest are one float, read from one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice, takewhile
from typing import TypeVar

import torch
from torch import Tensor

from livery.engine.adjusting import upload
from livery.engine.base import TokenLogprobs
from livery.engine.plan import SequenceSlice
from livery.engine.rows import Widths

LEAST = -9999.0  # for a probability of nothing
ROWS_AT_ONCE = 8  # of a vocabulary of fp32, which a second cache holds


A = TypeVar("A")


class StepLogprobs:
    """Those that the requests of one step ask for."""

    def __init__(
        self,
        slices: Sequence[SequenceSlice],
        logits: Tensor,
        chosen: Tensor,
        scored: Tensor,
        one_by_one: bool,
        widths: Widths | None = None,
    ) -> None:
        """`logits` [sampled rows, vocabulary] and the tokens `chosen` from them; `scored` those of scored tokens.

        `widths`: how many logits are each row's own, sampled ones first.
        """
        self._slices = slices
        wishes = [spec.logprobs for part in slices for spec in part.samples]
        self._rows = [row for row, wish in enumerate(wishes) if wish is not None]  # sampled rows that ask
        self._sampled: RowLogprobs | None = None
        self._scored: RowLogprobs | None = None
        if self._rows:
            if len(self._rows) < len(wishes):
                asking = upload(self._rows, logits, torch.int64)
                logits, chosen = logits[asking], chosen[asking]
            counts = [wishes[row] or 0 for row in self._rows]
            own = None if widths is None else widths.picked(self._rows)
            self._sampled = RowLogprobs(logits, chosen.clamp(min=0), counts, one_by_one, own)
        if tokens := [token for part in slices for token in part.scored]:
            counts = [part.scored_top for part in slices for _ in part.scored]
            targets = upload(tokens, scored, torch.int64)
            own = None if widths is None else widths.cut(len(wishes), len(wishes) + len(tokens))
            self._scored = RowLogprobs(scored[: len(tokens)], targets, counts, one_by_one, own)

    def sampled(self, later: Mapping[int, int]) -> dict[str, tuple[TokenLogprobs, ...]]:
        """By request, as its tokens come. `later`: by sampled row, tokens that were not known at the beginning."""
        if self._sampled is None:
            return {}
        known = self._sampled.result({at: later[row] for at, row in enumerate(self._rows) if row in later})
        of_row = dict(zip(self._rows, known, strict=True))
        found: dict[str, tuple[TokenLogprobs, ...]] = {}
        row = 0
        for part in self._slices:
            if row in of_row and part.samples:
                found[part.request_id] = finite([of_row[row + at] for at in range(len(part.samples))])
            row += len(part.samples)
        return found

    def scored(self) -> dict[str, list[TokenLogprobs | None]]:
        """Of the prompts' tokens, by request; None for those of rows that are not finite."""
        if self._scored is None:
            return {}
        rows = iter(self._scored.result({}))
        return {part.request_id: list(islice(rows, len(part.scored))) for part in self._slices if part.scored}


class RowLogprobs:
    """The log-probabilities of some rows: begun with the step, read when its result is."""

    def __init__(
        self,
        logits: Tensor,
        tokens: Tensor,
        counts: Sequence[int],
        one_by_one: bool = False,
        widths: Widths | None = None,
    ) -> None:
        """`logits` [rows, vocabulary], `tokens` int64 [rows] (any id where none was chosen yet), likeliest per row.

        `widths`: how many logits are each row's own, where that isn't all.
        """
        if widths is None:
            rows = [logits[row : row + 1] for row in range(len(logits))] if one_by_one else [logits]
            found = [torch.log_softmax(part.float(), dim=-1) for part in rows]
            self._all = (torch.cat(found) if len(found) > 1 else found[0]).clamp_(min=LEAST)
        else:
            self._all = _of_own_width(logits, widths, one_by_one)
        self._counts = counts
        # By number, so that which of two equally likely ones comes first is no other row's affair.
        self._top: dict[int, tuple[list[int], Tensor, Tensor]] = {}
        for count in sorted({count for count in counts if count}):
            asking = [row for row, wish in enumerate(counts) if wish == count]
            chosen = self._all if len(asking) == len(counts) else self._all[asking]
            top = chosen.topk(min(count, chosen.shape[-1]), dim=-1)
            self._top[count] = (asking, to_host(top.indices), to_host(top.values))
        own, ranks = self._of(tokens)
        self._own, self._ranks = to_host(own), to_host(ranks)

    def result(self, later: Mapping[int, int]) -> list[TokenLogprobs | None]:
        """By row; None where the row isn't finite. The device must be done with them.

        `later`: tokens of rows that were not known when this began.
        """
        own, ranks = self._own.tolist(), self._ranks.tolist()
        for row, token in later.items():
            value, rank = self._of(torch.tensor([token], device=self._all.device), slice(row, row + 1))
            own[row], ranks[row] = float(value), int(rank)
        tops: list[tuple[tuple[int, float], ...]] = [()] * len(own)
        for asking, ids, values in self._top.values():
            for row, row_ids, row_values in zip(asking, ids.tolist(), values.tolist(), strict=True):
                told = zip(row_ids, row_values, strict=True)
                tops[row] = tuple((token, value) for token, value in told if value != -math.inf)
        return [
            TokenLogprobs(value, rank, top) if value == value else None
            for value, rank, top in zip(own, ranks, tops, strict=True)
        ]

    def _of(self, tokens: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ranks of one token per row."""
        own = self._all[rows].gather(1, tokens[:, None])
        return own[:, 0], _ranks(self._all[rows], own)


def _ranks(rows: Tensor, own: Tensor) -> Tensor:
    """How many of each row [rows, vocabulary] are above its own number [rows, 1], and one more; int32.

    On a CPU a few rows at a time, so that what is compared is still in the cache when it is counted.
    """
    size = max(1, len(rows)) if rows.is_cuda else ROWS_AT_ONCE
    parts = zip(torch.split(rows, size), torch.split(own, size), strict=True)
    counts = [(part > least).view(torch.uint8).sum(dim=-1, dtype=torch.int32) for part, least in parts]
    return torch.cat(counts) + 1


def _of_own_width(logits: Tensor, widths: Widths, one_by_one: bool) -> Tensor:
    """Each row's log-probabilities of its own tokens, and minus infinity for the others: no probability at all."""
    found = torch.full(logits.shape, -math.inf, device=logits.device)
    for width, rows in widths.groups():
        for each in [[row] for row in rows] if one_by_one else [rows]:
            places = upload(each, logits, torch.int64)
            found[places, :width] = torch.log_softmax(logits[places, :width].float(), dim=-1).clamp_(min=LEAST)
    return found


def to_host(found: Tensor) -> Tensor:
    """A copy in host memory, under way at once: one asked for later would wait for the step launched in between."""
    if not found.is_cuda:
        return found
    return torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)


def finite(found: Sequence[A | None]) -> tuple[A, ...]:
    """What comes before the first row that isn't finite."""
    return tuple(one for one in takewhile(lambda one: one is not None, found) if one is not None)
