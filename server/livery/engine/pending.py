"""A step that was launched and whose tokens nobody has looked at yet; they stay on the device meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from livery.engine.adjusting import upload
from livery.engine.logprobs import StepLogprobs, finite, to_host
from livery.engine.masks import StepMasks, apply_masks, take_masks
from livery.engine.plan import NOT_FINITE, UNKNOWN, SampleSpec, SequenceSlice, StepResult
from livery.engine.pooling import PooledRows, results
from livery.engine.rows import Widths
from livery.engine.sampler import UNSETTLED, choose, choose_by_width, settle

NOTHING_ALLOWED = "no token is allowed here by the request's grammar, allowed_token_ids and bad_words together"


class PendingStep:
    """What a launched step chooses. The next step may be launched on it before `result` is asked for."""

    def __init__(
        self,
        slices: Sequence[SequenceSlice],
        logits: Tensor,
        keep_logits: bool = False,
        one_by_one: bool = False,
        pooled: Sequence[PooledRows] = (),
        widths: Widths | None = None,
    ) -> None:
        """`logits` [rows, vocabulary] as the slices' samples come, and then as the slices' scored tokens do.

        `pooled` is what pooled slices come to, `widths` how many logits are each row's own where that isn't all.

        They are copied with `keep_logits`, for logits that the next step overwrites. `one_by_one`: each row's token is
        chosen by itself, where torch's order of sums mustn't show.
        """
        self._slices = slices
        self._pooled = pooled
        self._specs: list[SampleSpec] = [spec for part in slices for spec in part.samples]
        self.unsettled: frozenset[str] = frozenset()  # known with the result: whose device token was none
        self._one_by_one = one_by_one
        rows = logits[: len(self._specs)]
        draws = any(spec.temperature > 0 for spec in self._specs)
        self._logits = rows.clone() if keep_logits and draws else rows
        self._are_kept = draws or not keep_logits
        self._scored = logits[len(self._specs) :]
        self._widths = widths
        self._logprobs: StepLogprobs | None = None
        self._masks: StepMasks | None = None

    @torch.inference_mode()
    def chosen(self) -> PendingStep:
        """Choose the tokens, once, and go on; masks that are still under way are waited for, but not for long."""
        if self._masks is not None:
            return self
        self._masks = take_masks(self._specs)
        self._specs = self._masks.specs
        base = self._logits.shape[-1] if self._widths is None else self._widths.base
        self._allowed = apply_masks(self._logits, self._masks.found, base)
        if self._one_by_one and self._specs:
            each = [choose(self._row(row), [spec]) for row, spec in enumerate(self._specs)]
            self._chosen = torch.cat(each)
        elif self._widths is not None:
            self._chosen = choose_by_width(self._allowed, self._specs, self._widths)
        else:
            self._chosen = choose(self._allowed, self._specs)
        if any(part.scored for part in self._slices) or any(spec.logprobs is not None for spec in self._specs):
            self._logprobs = StepLogprobs(
                self._slices, self._logits, self._chosen, self._scored, self._one_by_one, self._widths
            )
        self._copied: torch.cuda.Event | None = None
        self._host = to_host(self._chosen)
        if self._chosen.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return self

    def tokens_of(self, slices: Sequence[SequenceSlice]) -> tuple[Tensor, Tensor] | None:
        """Places of the unknown tokens among `slices`, one row each, and the tokens: int64, on the device.

        Where this step chose none (yet), any token stands in; that row's result isn't to be used.
        """
        places = [place for place, part in enumerate(slices) if part.token_ids == (UNKNOWN,)]
        if not places:
            return None
        last, rows = -1, {}
        for part in self._slices:
            last += len(part.samples)
            rows[part.request_id] = last
        pairs = [(place, rows[slices[place].request_id]) for place in places]
        uploaded = upload(pairs, self._chosen, torch.int64)
        return uploaded[:, 0], self._chosen[uploaded[:, 1]].clamp(min=0)

    @torch.inference_mode()
    def result(self) -> StepResult:
        """Wait for the tokens, which must have been chosen."""
        assert self._masks is not None
        if self._copied is not None:
            self._copied.synchronize()
        codes = self._host.tolist()
        unsettled = [row for row, code in enumerate(codes) if code == UNSETTLED]
        late = self._requests_of(self._masks.late)
        self.unsettled = self._requests_of(unsettled) | late
        chosen = settle(codes, self._row, self._specs)
        pooled, lost = results(self._pooled)
        tokens, failed = self._sampled(chosen, late)
        failed |= lost
        if self._logprobs is None:
            return StepResult(tokens, failed, pooled)
        scored = self._logprobs.scored()
        failed |= {request_id: NOT_FINITE for request_id, found in scored.items() if None in found}
        logprobs = self._logprobs.sampled({row: chosen[row] or 0 for row in unsettled})
        return StepResult(tokens, failed, pooled, logprobs, {name: finite(found) for name, found in scored.items()})

    def _sampled(
        self, chosen: Sequence[int | None], late: Collection[str]
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        """Each request's tokens, and why others have none; those whose mask came too late are in neither."""
        tokens: dict[str, tuple[int, ...]] = {}
        failed: dict[str, str] = {}
        row = 0
        for part in self._slices:
            first, row = row, row + len(part.samples)
            if first == row or part.request_id in late:
                continue
            if found := finite(chosen[first:row]):
                tokens[part.request_id] = found
            else:
                failed[part.request_id] = self._why(first, part.samples[0])
        return tokens, failed

    def _why(self, row: int, spec: SampleSpec) -> str:
        """Why a row has no token: fields that leave none are no fault of the model's, where its numbers are known."""
        if spec.mask is not None or (self._are_kept and bool(self._row(row).max().isfinite())):
            return NOTHING_ALLOWED
        return NOT_FINITE

    def _row(self, row: int) -> Tensor:
        """The logits that a row is chosen from, [1, its own vocabulary]."""
        return self._allowed[row : row + 1, : self._widths.rows[row] if self._widths is not None else None]

    def _requests_of(self, rows: Collection[int]) -> frozenset[str]:
        owners = [part.request_id for part in self._slices for _ in part.samples]
        return frozenset(owners[row] for row in rows)
