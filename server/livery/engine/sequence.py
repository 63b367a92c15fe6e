"""One request while the engine works on it: its tokens, how far they are computed, and the blocks it holds.

There is no prefill phase and no decode phase: a sequence has `num_tokens` and `num_computed`, and each step
computes some of the difference.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from livery.engine.adjust import Adjuster
from livery.engine.base import Asker, FinishReason, GenerationRequest, RequestRefused, TokenLogprobs
from livery.engine.constraint import Constraint
from livery.engine.figures import RequestTimes
from livery.engine.plan import UNKNOWN, PoolSpec, SampleSpec, SequenceSlice
from livery.engine.prefix_keys import KeyChain
from livery.engine.speculation import Drafter

# Tokens that each sequence of an adapter gets before the adapter may have to make room for another's: for sequences
# that had a turn as well, and for those whose client has seen nothing yet. One that took another's place, or lost its
# own before its turn was over, gets a TURN.
TURN, SHORT_TURN = 16, 4


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable, and written only by the scheduler and its prefix cache. Equal to nothing but itself."""

    request: GenerationRequest
    seed: int
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    skips: int = 0  # schedule rounds in which its adapter could not be placed
    turns: int = 0  # how often it left its place to other adapters' sequences
    turn_began: int = 0  # tokens it had when it was last admitted
    chain: KeyChain | None = None  # keys of its full blocks
    published: int = 0  # leading blocks that others can find
    announced: int = 0  # leading blocks that others can find or wait for
    awaited: bytes = b""  # key of a block that it waits for another to compute
    cached_tokens: int | None = None  # of its prompt, found when it first ran
    prompt_counted: int = 0  # position in its prompt up to which computed tokens are counted
    drafter: Drafter = field(default_factory=Drafter)
    constraint: Constraint | None = None  # its place in its grammar, which is never computed again
    pooled: bytes = b""  # what the rows computed so far come to
    in_flight: int = 0  # positions past its newest token that a step under way computes
    adjuster: Adjuster | None = None  # where its own tokens say something about the next one
    num_scored: int = 0  # prompt tokens, from the second on, whose log-probabilities its client has or doesn't want
    cost: float = 1.0  # of a token, beside one of the base alone
    tag: float = 0.0  # its tenant's counter when its turn to read its prompt comes
    ousted: str = ""  # the tenant that it took its place from
    robbed: bool = False  # of what it had computed, in a turn that wasn't over
    expires: float = math.inf  # when its time is up
    arrived: float = field(default_factory=time.monotonic)
    loaded: float = 0.0  # when its adapter came that it waited for
    began: float = 0.0  # when it first ran

    @classmethod
    def of(cls, request: GenerationRequest, seed: int, constraint: Constraint | None = None) -> Sequence:
        tokens = list(request.prompt_token_ids)
        adjuster = Adjuster.of(request.sampling, tokens)
        sequence = cls(request=request, seed=seed, tokens=tokens, constraint=constraint, adjuster=adjuster)
        sequence.num_scored = sequence.first_scored
        return sequence

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def asker(self) -> Asker:
        """Its tenant, as one that takes memory for adapters."""
        return Asker.of(self.request)

    @property
    def uncharged(self) -> int:
        """Tokens of its prompt that its tenant is still to be charged for, unless they are found."""
        return len(self.request.prompt_token_ids) - self.prompt_counted

    @property
    def adapter(self) -> str | None:
        return self.request.adapter.digest if self.request.adapter else None

    def times(self) -> RequestTimes:
        """What its time went to, now that its first token comes."""
        loading = max(0.0, self.loaded - self.arrived)
        return RequestTimes(self.began - self.arrived, loading, time.monotonic() - self.began)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def uncomputed(self) -> tuple[int, int]:
        """Where the positions begin and end that are still to be computed."""
        return self.num_computed, len(self.tokens)

    def num_lacking(self, block_size: int) -> int:
        """Blocks that it is still to hold for the tokens that it has."""
        return max(0, -(-len(self.tokens) // block_size) - len(self.blocks))

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt_token_ids)

    def left_of_turn(self, turn: int, *, recomputed: bool) -> int:
        """Tokens that it still has to get of a turn of so many, 0 or less where it is over.

        A turn must be worth what it takes to come back: computing everything again where that is `recomputed`.
        """
        if recomputed:
            turn = max(turn, self.turn_began)
        return self.turn_began + turn - self.num_tokens

    @property
    def num_unscored(self) -> int:
        """Positions to be computed whose next token is one of the prompt that has to be scored."""
        last = len(self.request.prompt_token_ids) - 1
        if self.request.sampling.prompt_logprobs is None or self.num_scored >= last:
            return 0
        return max(0, last - max(self.num_computed, self.first_scored))

    @property
    def first_scored(self) -> int:
        """The first position whose next token is to be scored, if any is."""
        return max(0, self.request.sampling.prompt_logprobs_start - 1)

    @property
    def num_before_scored(self) -> int:
        """Positions to be computed that come before those that score."""
        return max(0, self.first_scored - self.num_computed) if self.num_unscored else 0

    @property
    def num_findable(self) -> int:
        """Leading positions that may as well be found computed: all but the newest token and those that score."""
        return min(self.num_tokens - 1, self.first_scored) if self.num_unscored else self.num_tokens - 1

    @property
    def depends_on_newest(self) -> bool:
        """Whether its next row can't be planned before its newest token is known."""
        return self.adjuster is not None and self.adjuster.depends_on_newest

    @property
    def needs_every_row(self) -> bool:
        """Whether it takes rows that others have computed as well: the prefix cache keeps none."""
        mean = self.request.pooling is not None and self.request.pooling.kind == "mean"
        return mean or self.num_findable == 0

    def is_sampled_after(self, count: int) -> bool:
        """Whether the next `count` positions end with its newest token, which another one is to follow."""
        return count == self.num_uncomputed and self.request.pooling is None

    def pool_spec(self, end: int) -> PoolSpec | None:
        """What the rows from the first uncomputed one to `end` are pooled to, if they are."""
        pooling, last = self.request.pooling, end == self.num_tokens
        if pooling is None or not (last or pooling.kind == "mean"):
            return None
        return PoolSpec(pooling, self.pooled if self.num_computed else b"", last)

    def count_prompt(self, part: SequenceSlice) -> int:
        """The prompt tokens that a step computed, but none again that is computed again."""
        end = min(part.start + len(part.token_ids), len(self.request.prompt_token_ids))
        new = max(0, end - max(part.start, self.prompt_counted))
        self.prompt_counted = max(end, self.prompt_counted)
        return new

    def sample_spec(
        self, eos_token_ids: tuple[int, ...], ahead: int = 0, drafts: list[int] | None = None
    ) -> SampleSpec:
        """How the token after the newest one and `ahead` more is chosen; those are the first of `drafts`, if known."""
        params, index = self.request.sampling, self.num_generated + ahead
        forbidden: tuple[int, ...] = ()
        adjustments = None
        if index < params.min_tokens:
            forbidden = params.stop_token_ids + eos_token_ids
        if self.adjuster is not None:
            before = (drafts or [])[:ahead]
            forbidden += self.adjuster.forbidden(self.tokens, before)
            adjustments = self.adjuster.adjustments(self.tokens, before)
        draw = uniform(self.seed, index) if params.temperature > 0 else 0.0
        return SampleSpec(
            params.temperature,
            params.top_p,
            params.top_k,
            params.min_p,
            draw,
            forbidden,
            self.constraint,
            adjustments,
            params.logprobs,
        )

    def take(self, tokens: Iterable[int], eos_token_ids: tuple[int, ...], max_model_len: int) -> FinishReason | None:
        """Go on by these tokens up to the one that ends it, if one does."""
        for token in tokens:
            self.tokens.append(token)
            if reason := self.finish_reason(eos_token_ids, max_model_len):
                return reason
            if self.constraint is not None:
                self.constraint.advance(token)
        return None

    def slice_of(self, count: int, drafts: list[int], eos_token_ids: tuple[int, ...]) -> SequenceSlice:
        """Its next `count` positions, and those of drafts of what follows its newest token."""
        start, end = self.num_computed, self.num_computed + count
        rows = 1 + len(drafts) if self.is_sampled_after(count) else 0
        before = min(self.num_before_scored, count)
        first = start + before + 1
        return SequenceSlice(
            request_id=self.request_id,
            token_ids=(*self.tokens[start:end], *drafts),
            start=start,
            block_table=tuple(self.blocks),
            adapter=self.adapter,
            samples=tuple(self.sample_spec(eos_token_ids, ahead, drafts) for ahead in range(rows)),
            adapter_start=self.request.adapter_start,
            pool=self.pool_spec(end),
            scored=tuple(self.tokens[first : first + min(count - before, self.num_unscored)]),
            scored_top=self.request.sampling.prompt_logprobs or 0,
            scored_from=before,
        )

    def take_scores(self, start: int, scores: tuple[TokenLogprobs, ...]) -> tuple[TokenLogprobs, ...]:
        """Of scores of the prompt's tokens after `start`, those that its client has not got yet."""
        new = scores[self.num_scored - start :]
        self.num_scored += len(new)
        return new

    def slice_ahead(self, eos_token_ids: tuple[int, ...]) -> SequenceSlice:
        """The position after its newest token, for the token that a step under way chooses there."""
        return SequenceSlice(
            request_id=self.request_id,
            token_ids=(UNKNOWN,),
            start=self.num_tokens,
            block_table=tuple(self.blocks),
            adapter=self.adapter,
            samples=(self.sample_spec(eos_token_ids, 1),),
            adapter_start=self.request.adapter_start,
        )

    def room(self, max_model_len: int) -> int:
        """How many more tokens it may get."""
        return min(self.request.sampling.max_tokens - self.num_generated, max_model_len - self.num_tokens)

    def stops(self, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that end it. Nothing can follow a finished grammar, so that it ends whatever is ignored."""
        params = self.request.sampling
        ignored = params.ignore_eos and self.constraint is None
        return params.stop_token_ids if ignored else params.stop_token_ids + eos_token_ids

    def finish_reason(self, eos_token_ids: tuple[int, ...], max_model_len: int) -> FinishReason | None:
        """Why the newest token ends the sequence, if it does."""
        if self.tokens[-1] in self.stops(eos_token_ids):
            return "stop"
        return "length" if self.room(max_model_len) <= 0 else None


def check_request(request: GenerationRequest, max_model_len: int) -> None:
    """Raise RequestRefused for a request that could never run."""
    length = len(request.prompt_token_ids)
    most = max_model_len - (request.pooling is None)  # an answer needs room for a token
    if not 0 < length <= most:
        raise RequestRefused(f"the prompt has {length} tokens; 1 to {most} are possible")
    if request.sampling.max_tokens < 1:
        raise RequestRefused(f"max_tokens is {request.sampling.max_tokens}; it must be at least 1")
    if not request.weight > 0:
        raise RequestRefused(f"the tenant's weight is {request.weight}; it must be above 0")
    if request.adapter_start < 0:
        raise RequestRefused(f"adapter_start is {request.adapter_start}; it must be a position, 0 or more")


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on nothing but a request's seed and a token's index.

    Counter-based, so that a preempted sequence draws again what it drew before.
    """
    digest = hashlib.sha256(f"livery-draw:{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
