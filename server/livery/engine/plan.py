"""What crosses from deciding to computing: one frozen StepPlan out, one StepResult back.

The scheduler writes a plan and never sees a tensor; the runner executes it and makes no policy.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from livery.engine.base import Pooling, TokenLogprobs

NOT_FINITE = "the model's output is not a number for this request; its adapter's weights may overflow"


@dataclass(frozen=True, slots=True)
class TokenMask:
    """What a grammar says of one row: all tokens that it allows, or all that it bans, whichever are fewer; int64.

    `ends_only`: all that it allows is to end.
    """

    tokens: NDArray[np.int64]
    allows: bool
    ends_only: bool


class MaskUnderWay(Protocol):
    """A mask that is worked out while the step computes."""

    def mask(self, seconds: float) -> TokenMask | None:
        """Wait at most so long; None where it isn't there then, or never will be."""
        ...


@dataclass(frozen=True, slots=True)
class Penalties:
    """What makes tokens less likely for having come: `tokens` and how often each was answered, `counts`, both int64.

    Each token stands there once; those of the prompt alone, with a count of 0, only where `repetition` isn't 1.
    """

    presence: float
    frequency: float
    repetition: float
    tokens: array[int]
    counts: array[int]


@dataclass(frozen=True, slots=True)
class Adjustments:
    """How one row's logits are changed before a token is chosen, in this order; see SamplingParams."""

    bias: tuple[tuple[int, float], ...] = ()
    penalties: Penalties | None = None
    allowed: tuple[int, ...] = ()  # none: all are


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How to choose the next token of one row.

    `draw` is the uniform number in [0, 1) that decides a random choice: the scheduler derives it from the
    request's seed and the token's index, so neither batch company nor preemption changes it.
    `forbidden` token ids get no probability, nor does what `mask` rules out, asked for when the token is chosen.
    `logprobs`: how many of the likeliest tokens' log-probabilities are wanted beside the chosen one's; None: not even
    that.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    draw: float
    forbidden: tuple[int, ...] = ()
    mask: MaskUnderWay | None = None
    adjustments: Adjustments | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a slice's rows add to the vector of a pooled request.

    `before` is what its earlier slices came to, as the runner gave it; with `last` the prompt ends here.
    """

    pooling: Pooling
    before: bytes = b""
    last: bool = False


UNKNOWN = -1  # in place of a token that the step under way chooses


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """The tokens of one sequence that a step computes: positions [start, start + len(token_ids)).

    `block_table` covers every position up to the last one. The logits of the last `len(samples)` rows each choose
    the token after their own, by their own spec; none do while a prompt is read. Positions before `adapter_start`
    run on the base. Rows of a slice with `pool` are pooled and none is sampled. A slice whose one token is UNKNOWN goes
    on with what the step before it chooses. `scored` are the tokens after the slice's rows from `scored_from` on whose
    log-probabilities are asked for, each with `scored_top` of the likeliest there.
    """

    request_id: str
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    adapter: str | None
    samples: tuple[SampleSpec, ...]
    adapter_start: int = 0
    pool: PoolSpec | None = None
    scored: tuple[int, ...] = ()
    scored_top: int = 0
    scored_from: int = 0

    @property
    def drafts(self) -> tuple[int, ...]:
        """Guesses of tokens after the sequence's newest one: all sampled rows but the first compute one."""
        return self.token_ids[len(self.token_ids) - len(self.samples) + 1 :] if self.samples else ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything the runner needs for one step, and nothing it may change."""

    slices: tuple[SequenceSlice, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(part.token_ids) for part in self.slices)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The token chosen after each sampled row, by request; `failed` names requests whose own rows went wrong.

    A request's tokens end before its first row that is not finite; with none left it has failed. A request whose mask
    wasn't there in time is in neither. `pooled` is what each pooled slice came to. `logprobs` are those of `tokens`,
    `scored` those of the slice's `scored`, for requests that asked.
    """

    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    pooled: Mapping[str, bytes] = field(default_factory=dict)
    logprobs: Mapping[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    scored: Mapping[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
