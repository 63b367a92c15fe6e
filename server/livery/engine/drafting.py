"""Drafts of a step: how many each sampled sequence gets, and which of its tokens would have come without them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import takewhile

from livery.engine.plan import StepResult
from livery.engine.sequence import Sequence
from livery.engine.speculation import deal

Reserve = Callable[[Sequence, int], bool]  # lets a sequence hold the blocks of its first positions, if enough are free


class Drafting:
    """Plans drafts and checks them. `most` of a sequence in a step; `rows` of a step up to which drafts fill it."""

    def __init__(self, most: int, rows: int, eos_token_ids: tuple[int, ...], max_model_len: int) -> None:
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self._most = most
        self._rows = rows
        self._eos = eos_token_ids
        self._max_model_len = max_model_len

    @property
    def is_on(self) -> bool:
        return self._most > 0

    def plan(self, sampled: Collection[Sequence], rows: int, reserve: Reserve) -> dict[str, list[int]]:
        """Drafts for sequences of a step of so many rows, in rows and blocks that nothing else in it asks for."""
        spare = self._rows - rows
        if spare <= 0:
            return {}
        wishes = []
        for sequence in sampled:
            # A grammar's masks are worked out for one token after the other.
            most = 0 if sequence.constraint else min(self._most, sequence.room(self._max_model_len) - 1)
            wishes.append(sequence.drafter.propose(sequence.tokens, most, sequence.stops(self._eos)))
        drafts = {}
        for sequence, wish, share in zip(sampled, wishes, deal(list(map(len, wishes)), spare), strict=True):
            while share and not reserve(sequence, sequence.num_tokens + share):
                share -= 1
            drafts[sequence.request_id] = wish[:share]
        return drafts

    def checked(self, sequence: Sequence, drafts: tuple[int, ...], result: StepResult) -> tuple[int, ...]:
        """The tokens of a step that would have come without drafts as well; at least one."""
        tokens = result.tokens[sequence.request_id]
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(drafts, tokens, strict=False)))
        sequence.drafter.learn(len(drafts), right)
        self.drafted_tokens += len(drafts)
        self.accepted_tokens += right
        # The row after a right draft may be missing, not being a number: it is left to the next step then.
        kept = tokens[: right + 1]
        sequence.num_computed += len(kept) - 1
        return kept
