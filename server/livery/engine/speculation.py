"""Drafts of a sequence's next tokens, found in what it holds already, so that one step can check several at once.

Where text is copied, edited or quoted, runs of tokens repeat: what followed the newest tokens the last time they
stood there is a good guess of what follows now (prompt lookup decoding: Saxena 2023; the idea of checking drafts in
one step: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023). A wrong draft costs a
row of a step and changes nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import takewhile

LONGEST, SHORTEST = 4, 2  # newest tokens that must have stood there before, tried in this order
WORTH = 0.25  # a draft is tried when it is right at least this often
FIRST_RATE = 0.5  # of a sequence that nothing is known of: two drafts
LEARNING = 1 / 8  # weight of one more draft's fate in a sequence's rate
REACH = 8192  # newest positions that are looked up; beyond, what is repeated is rarely repeated word for word
STRIDE = 1024  # positions taken in per step, so that a long prompt doesn't hold up everybody's step: 3 ms
PROBE = 16  # a sequence whose drafts are not worth it tries a single one every so many times


class NgramIndex:
    """Where each run of tokens last stood in one sequence. Grows with it: constant work per token."""

    def __init__(self, longest: int = LONGEST, shortest: int = SHORTEST) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._next: dict[tuple[int, ...], int] = {}  # run of tokens -> position after its last place
        self._indexed = 0  # positions before this one have all runs that end before them in the index

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """What followed the longest run of newest tokens where it stood last, `count` tokens, or none at all.

        `tokens` are those of the last call and any number after them. A run that reaches into its own copy
        repeats, so that the draft of a repeated pattern is as long as asked for.
        """
        if not self._index(tokens):
            return []
        for length in self._lengths:
            start = self._next.get(tuple(tokens[-length:]))
            if start is not None:
                period = len(tokens) - start
                return [tokens[start + offset % period] for offset in range(count)]
        return []

    def _index(self, tokens: Sequence[int]) -> bool:
        """Take in the runs that another token follows: the newest ones would only find themselves.

        False as long as some are left for the next call.
        """
        start = max(self._indexed, 1, len(tokens) - REACH if self._indexed == 0 else 0)
        end = min(len(tokens), start + STRIDE)
        for position in range(start, end):
            for length in self._lengths:
                if length <= position:
                    self._next[tuple(tokens[position - length : position])] = position
        self._indexed = max(end, self._indexed)
        return end >= len(tokens)


class Drafter:
    """Drafts for one sequence, as many as have been worth it lately."""

    def __init__(self) -> None:
        self.rate = FIRST_RATE  # how often a draft was right when the ones before it were
        self._index = NgramIndex()
        self._passed = 0  # proposals not asked for since the last probe
        self._silent = False

    def propose(self, tokens: Sequence[int], most: int, stops: Collection[int] = ()) -> list[int]:
        """At most `most` drafts of the tokens after `tokens`, none of them after one of `stops`."""
        if most <= 0 or self._silent:
            return []
        drafts = self._index.propose(tokens, most)
        if drafts:
            drafts = drafts[: self._worthwhile()]
        ended = len(list(takewhile(lambda token: token not in stops, drafts)))
        return drafts[: ended + 1]

    def learn(self, drafted: int, accepted: int) -> None:
        """How the drafts of a step fared: the first `accepted` were right and the next one, if any, was not."""
        for _ in range(accepted):
            self.rate += LEARNING * (1 - self.rate)
        if accepted < drafted:
            self.rate -= LEARNING * self.rate

    def silence(self) -> None:
        """Propose nothing ever again."""
        self._silent = True

    def _worthwhile(self) -> int:
        """The n-th draft is right with `rate` to the power of n; as many as are right often enough."""
        count = int(math.log(WORTH) / math.log(min(max(self.rate, 1e-9), 1 - 1e-9)))
        if count:
            return count
        self._passed = (self._passed + 1) % PROBE
        return int(self._passed == 0)


def deal(wishes: Sequence[int], rows: int) -> list[int]:
    """Share `rows` out one by one in turn, none beyond its wish."""
    shares = [0] * len(wishes)
    while rows > 0 and shares != list(wishes):
        for which, wish in enumerate(wishes):
            if shares[which] < wish and rows > 0:
                shares[which] += 1
                rows -= 1
    return shares
