"""Which requests have no time left, and which waiting ones can't be done in the time that they have.

Times are seconds of a clock that only goes forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from livery.engine.base import GenerationRequest
from livery.engine.sequence import Sequence

FORGETS = 0.98  # of the best pace, per step that tells one: a slower machine shows after some dozens
TELLS = 0.5  # of a step's most tokens, read from prompts: below that its fixed costs hide what reading costs
BELIEVED_S = 60.0  # a pace that no step told again: what it refused may be possible by now, and only trying shows


class Deadlines:
    """The only writer of who has to be done when, and of how fast prompts are read."""

    def __init__(self, clock: Callable[[], float], max_batch_tokens: int) -> None:
        self._clock = clock
        self._tells = max_batch_tokens * TELLS
        self._began = 0.0  # when the last step was planned
        self._pace = 0.0  # tokens a second at which prompts were read, the best of late
        self._told = -math.inf  # when the last step told it

    def set(self, sequence: Sequence) -> None:
        """A request has come."""
        if sequence.request.deadline_s > 0:
            sequence.expires = self._clock() + sequence.request.deadline_s

    def seconds_left(self, sequences: Iterable[Sequence]) -> float:
        """Until the first of them has none."""
        return min((sequence.expires for sequence in sequences), default=math.inf) - self._clock()

    def expired(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Those whose time is up."""
        now = self._clock()
        return [sequence for sequence in sequences if sequence.expires <= now]

    def step_began(self) -> None:
        self._began = self._clock()

    def step_ended(self, prompt_tokens: int, tokens: int) -> None:
        """The step computed so many tokens, of which so many of prompts."""
        now = self._clock()
        if now > self._began and prompt_tokens >= self._tells:
            before = self._pace * FORGETS if now <= self._told + BELIEVED_S else 0.0
            self._pace, self._told = max(tokens / (now - self._began), before), now

    def can_begin(self, sequence: Sequence, found: int) -> bool:
        """Whether a sequence of which so many tokens were found could read the others before its time is up.

        At the pace that steps told lately; as long as none did, everything can.
        """
        now = self._clock()
        if sequence.expires == math.inf or now > self._told + BELIEVED_S:
            return True
        return now + (sequence.num_tokens - found) / self._pace <= sequence.expires


def late(request: GenerationRequest, why: str) -> str:
    """What a client is told whose request has no time left."""
    return (
        f"The request's time of {request.deadline_s:.3g} seconds {why}. Ask for less, allow more time, or try "
        "again when the server has less to do."
    )
