"""What a step's result means for its sequences: tokens taken, vectors kept, failures told, tenants charged."""

from __future__ import annotations

import msgspec

from livery.engine.base import TokenDelta, TokenLogprobs
from livery.engine.drafting import Drafting
from livery.engine.fairness import VirtualTokens, answer_cost, prompt_cost
from livery.engine.plan import NOT_FINITE, PoolSpec, SequenceSlice, StepPlan, StepResult
from livery.engine.prefix import PrefixCache
from livery.engine.roster import Roster
from livery.engine.sequence import Sequence

Told = tuple[TokenLogprobs, ...]


def dropped(sequence: Sequence) -> TokenDelta:
    """The last delta of a sequence that ends before its time: how much of its prompt was computed or found."""
    read = sequence.prompt_counted
    cached = min(sequence.cached_tokens or 0, read)
    return TokenDelta(sequence.request_id, [], "abort", cached_tokens=cached, prompt_tokens=read)


class Outcomes:
    """Advances sequences, and charges their tenants for what was computed."""

    def __init__(
        self,
        roster: Roster,
        prefix: PrefixCache,
        drafting: Drafting,
        tokens: VirtualTokens,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
    ) -> None:
        self.prompt_tokens = 0  # computed, each once however often
        self.generated_tokens = 0
        self._roster = roster
        self._prefix = prefix
        self._drafting = drafting
        self._tokens = tokens
        self._eos = eos_token_ids
        self._max_model_len = max_model_len

    def take(self, plan: StepPlan, result: StepResult) -> list[TokenDelta]:
        """Advance the sequences of an executed plan. Requests aborted meanwhile are passed over."""
        deltas: list[TokenDelta] = []
        for part in plan.slices:
            sequence = self._roster.by_id.get(part.request_id)
            if sequence is not None and sequence.num_computed == part.start:  # else planned ahead for one that is gone
                new = sequence.count_prompt(part)
                self.prompt_tokens += new
                self._tokens.charge(sequence.tenant, prompt_cost(sequence, new))
                deltas += self._take(sequence, part, result)
        return deltas

    def fail(self, sequence: Sequence, error: str, code: str = "") -> TokenDelta:
        """End a sequence with an error."""
        self._roster.remove(sequence)
        return msgspec.structs.replace(dropped(sequence), finish_reason="error", error=error, code=code)

    def _take(self, sequence: Sequence, part: SequenceSlice, result: StepResult) -> list[TokenDelta]:
        if sequence.constraint is not None and sequence.constraint.failure:
            return [self.fail(sequence, sequence.constraint.failure)]
        if reason := result.failed.get(part.request_id):
            if part.drafts:  # they may be to blame: it is computed again without
                sequence.drafter.silence()
                self._roster.trim(sequence)
                return []
            if reason == NOT_FINITE:
                self._prefix.distrust(sequence)
            return [self.fail(sequence, reason)]
        scores = sequence.take_scores(part.start + part.scored_from, result.scored.get(part.request_id, ()))
        sequence.num_computed += len(part.token_ids) - len(part.drafts)
        deltas = []
        if part.pool is not None:
            deltas = self._pool_on(sequence, part.pool, result.pooled[part.request_id])
        elif part.samples and part.request_id not in result.tokens:
            sequence.num_computed -= 1  # its newest token is computed again once its mask is there
        elif part.samples:
            tokens = self._drafting.checked(sequence, part.drafts, result)
            return [self._append(sequence, tokens, result.logprobs.get(part.request_id, ()), scores)]
        if scores:
            deltas.append(TokenDelta(part.request_id, [], prompt_logprobs=scores))
        return deltas

    def _append(self, sequence: Sequence, tokens: tuple[int, ...], logprobs: Told, scores: Told) -> TokenDelta:
        """Take new tokens up to the one that ends the sequence, if one does."""
        first = not sequence.num_generated
        cached, times = (sequence.cached_tokens or 0, sequence.times()) if first else (0, None)
        before = sequence.num_tokens
        reason = sequence.take(tokens, self._eos, self._max_model_len)
        appended = sequence.tokens[before:]
        self.generated_tokens += len(appended)
        self._tokens.charge(sequence.tenant, answer_cost(sequence, len(appended)))
        self._prefix.publish(sequence)
        self._roster.trim(sequence)
        if reason is not None:
            self._roster.remove(sequence)
        told = logprobs[: len(appended)]
        name = sequence.request_id
        return TokenDelta(
            name, appended, reason, cached_tokens=cached, logprobs=told, prompt_logprobs=scores, times=times
        )

    def _pool_on(self, sequence: Sequence, spec: PoolSpec, vector: bytes) -> list[TokenDelta]:
        """Keep what a prompt came to so far, or end with it."""
        sequence.pooled = vector
        if not spec.last:
            return []
        self._prefix.publish(sequence)
        self._roster.remove(sequence)
        cached = sequence.cached_tokens or 0
        return [
            TokenDelta(sequence.request_id, [], "stop", cached_tokens=cached, pooled=vector, times=sequence.times())
        ]
