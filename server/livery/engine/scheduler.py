"""Who computes what in the next step: the scheduler decides, nobody else.

`schedule()` hands out a budget of tokens: first to running sequences that need one token, then to those that still read
their prompt and to waiting ones, among tenants by their counters (livery.engine.fairness), a tenant's own in order of
arrival. `update()` takes the result back. A sequence whose adapter isn't in device memory is skipped, not waited for;
one skipped too often stops admissions behind it, so that requests for hot adapters can't starve it. A tenant whose next
sequence finds no blocks is passed over likewise. Where running requests hold all room, adapters take turns, and so do
tenants (livery.engine.turns). When blocks run out, the youngest running sequence is preempted: its blocks are freed and
its tokens computed again later, as far as the prefix cache doesn't find them.

Where a step has rows to spare, a sequence's newest token is followed by drafts of the next ones, and each of these
rows is sampled as it would be in a step of its own. What a row says after a right draft is what it would have said
without drafts, so tokens are taken up to and with the first one that differs from its draft; positions computed
for wrong drafts count as not computed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from livery.engine.ahead import plan_ahead
from livery.engine.base import (
    GenerationRequest,
    RequestRefused,
    TokenDelta,
)
from livery.engine.blocks import BlockPool
from livery.engine.claims import too_large
from livery.engine.codes import ADAPTER_LOST, ADAPTER_TOO_LARGE, DEADLINE_EXCEEDED
from livery.engine.constraint import Constraint
from livery.engine.deadlines import Deadlines, late
from livery.engine.drafting import Drafting
from livery.engine.fairness import VirtualTokens
from livery.engine.outcomes import Outcomes, dropped
from livery.engine.plan import StepPlan, StepResult
from livery.engine.prefix import PrefixCache
from livery.engine.prefix_keys import KVIdentity
from livery.engine.residency import Residency
from livery.engine.roster import MAX_SKIPS, Roster
from livery.engine.sequence import Sequence, check_request
from livery.engine.turns import Turns

QUICK = 4  # a part of a step's prompt tokens, one in so many, is for short prompts behind a long one
PREFETCH = 8  # waiting sequences whose adapters are fetched before there is a place for the sequence


@dataclass(slots=True)
class _Step:
    """A step being planned: what is left of it, and who of the waiting is not admitted any more."""

    budget: int  # tokens
    scored: int  # rows that may give log-probabilities of prompts' tokens
    planned: dict[str, int] = field(default_factory=dict)  # request id -> tokens of this step
    closed: bool = False  # to all that wait
    held: set[str] = field(default_factory=set)  # tenants
    passed: list[Sequence] = field(default_factory=list)  # found no blocks, and nobody was admitted since
    begins: bool = False  # a tenant with less than its share reads a prompt
    short: bool = False  # and others with more than theirs read none therefore

    def plan(self, sequence: Sequence, count: int) -> None:
        self.planned[sequence.request_id] = count
        self.budget -= count
        self.scored -= min(max(0, count - sequence.num_before_scored), sequence.num_unscored)

    def share(self, sequence: Sequence) -> int:
        """Positions that a sequence gets of what is left of the tokens, and of the rows to be scored."""
        count = min(sequence.num_uncomputed, self.budget)
        if sequence.num_unscored > self.scored:
            return min(count, sequence.num_before_scored + self.scored)
        return count


class Scheduler:
    """Decides who runs, who is preempted and what a step computes."""

    def __init__(
        self,
        pool: BlockPool,
        residency: Residency,
        *,
        max_batch_tokens: int,
        max_running: int,
        max_model_len: int,
        eos_token_ids: tuple[int, ...],
        shared: KVIdentity | None = None,
        speculate: int = 0,
        draft_rows: int = 0,
        scored_rows: int = 1 << 30,
        weight_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shared`: what blocks in the prefix cache have in common; None turns it off.

        `speculate`: most drafts of a sequence in a step; `draft_rows`: rows up to which drafts fill a step;
        `scored_rows`: most rows of a step that give log-probabilities of prompts' tokens; `weight_bytes`: of the base,
        beside which adapters have their costs; `clock`: seconds, for deadlines.
        """
        self._pool = pool
        self._residency = residency
        self._max_batch_tokens = max_batch_tokens
        self._max_model_len = max_model_len
        self._eos = eos_token_ids
        self._scored_rows = scored_rows
        self.prefix = PrefixCache(pool, shared, max_batch_tokens)
        self.tokens = VirtualTokens()
        self.drafting = Drafting(speculate, min(draft_rows, max_batch_tokens), eos_token_ids, max_model_len)
        self.roster = Roster(pool, residency, self.prefix, self.tokens, max_running, weight_bytes)
        self.outcomes = Outcomes(self.roster, self.prefix, self.drafting, self.tokens, eos_token_ids, max_model_len)
        self._turns = Turns(pool, residency, self.tokens, max_running, recomputed=not self.prefix.is_on)
        self._deadlines = Deadlines(clock, max_batch_tokens)
        self._ended: list[TokenDelta] = []  # of requests that ended apart from a step's result
        self.turns = 0  # that ended for lack of room
        self._was_short = False  # whether prompts were kept out of the last step (_Step.short)

    # -- requests ------------------------------------------------------------------------------------

    def add(self, request: GenerationRequest, constraint: Constraint | None = None) -> None:
        """Queue a request, its answer held to a grammar. Raises RequestRefused when it could never run."""
        if request.request_id in self.roster.by_id:
            raise RequestRefused(f"request id {request.request_id!r} is already in use")
        check_request(request, self._max_model_len)
        seed = request.sampling.seed
        sequence = Sequence.of(request, secrets.randbits(63) if seed is None else seed, constraint)
        self.roster.add(sequence)
        self._deadlines.set(sequence)

    def abort(self, request_id: str) -> TokenDelta | None:
        """Drop a request, free what it holds and give its last delta; None when it is already gone."""
        sequence = self.roster.by_id.get(request_id)
        if sequence is None:
            return None
        self.roster.remove(sequence)
        return dropped(sequence)

    def fail_waiting(self, digest: str, reason: str) -> list[TokenDelta]:
        """End the waiting requests of an adapter that can't be loaded."""
        doomed = [seq for seq in self.roster.waiting if seq.adapter == digest]
        return [self.outcomes.fail(seq, reason, ADAPTER_LOST) for seq in doomed]

    def end_expired(self) -> None:
        """End the requests whose time is up, waiting and running."""
        for sequence in self._deadlines.expired(self.roster.by_id.values()):
            self._end_late(sequence, "is up")

    def take_ended(self) -> list[TokenDelta]:
        """The last deltas of requests that ended otherwise than by a step's result, each once."""
        ended, self._ended = self._ended, []
        return ended

    # -- one step ------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Choose the tokens of the next step and allocate their blocks."""
        self.roster.put_in_order()
        self._let_in_adapter()
        self._let_in_sequence()
        step = _Step(self._max_batch_tokens, self._scored_rows)
        for sequence in [sequence for sequence in self.roster.running if sequence.num_uncomputed <= 1]:
            self._go_on(sequence, step)
        self._read_prompts(step)
        parts = [(self.roster.by_id[request_id], count) for request_id, count in step.planned.items()]
        sampled = [sequence for sequence, count in parts if sequence.is_sampled_after(count)]
        drafts = self.drafting.plan(sampled, sum(step.planned.values()), self.roster.reserve)
        plan = StepPlan(tuple(seq.slice_of(count, drafts.get(seq.request_id, []), self._eos) for seq, count in parts))
        assert plan.num_tokens <= self._max_batch_tokens, "a step over its token budget"
        self._deadlines.step_began()
        return plan

    def schedule_ahead(self, plan: StepPlan) -> StepPlan | None:
        """The step after `plan`, whose result isn't there yet; None while somebody waits or drafts are made."""
        running = self.roster.running
        for sequence in running:
            sequence.in_flight = 0
        if self.roster.waiting or self.drafting.is_on:
            return None
        return plan_ahead(plan, running, self.roster.by_id, self.roster.reserve, self._eos, self._max_model_len)

    def update(self, plan: StepPlan, result: StepResult) -> list[TokenDelta]:
        """Advance the sequences of an executed plan. Requests aborted meanwhile are passed over."""
        before = self.outcomes.prompt_tokens
        deltas = self.outcomes.take(plan, result)
        self._deadlines.step_ended(self.outcomes.prompt_tokens - before, plan.num_tokens)
        return deltas

    # -- how things stand ----------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return len(self.roster.running)

    @property
    def num_waiting(self) -> int:
        return len(self.roster.waiting)

    @property
    def has_work(self) -> bool:
        return bool(self.roster.by_id)

    @property
    def seconds_left(self) -> float:
        """Until some request's time may be up."""
        return self._deadlines.seconds_left(self.roster.by_id.values())

    def check_invariants(self) -> None:
        """Blocks and sequences add up. For tests and for idle moments."""
        self._pool.check_invariants()
        self._residency.check_invariants()
        self.prefix.check_invariants(self.roster.running)
        self.roster.check_invariants()

    # -- who makes room ------------------------------------------------------------------------------

    def _let_in_adapter(self) -> None:
        """Let adapters that had their turn make room for the first that waits for some.

        Requests of more adapters than fit would else wait for others' last tokens. At most one adapter is let in per
        step, so that what it costs to go and come back stays small beside what is computed.
        """
        for waiting in self.roster.waiting:
            if waiting.adapter is not None and self._residency.lacks_room(waiting.adapter):
                if waiting.adapter in self._residency.limited:  # which is for its own tenant to settle
                    continue
                for adapter in self._turns.adapters_for(waiting, self.roster.running):
                    for sequence in [sequence for sequence in self.roster.running if sequence.adapter == adapter]:
                        self.roster.end_turn(sequence)
                    self._residency.evict(adapter)  # or they would come back at once
                    self.turns += 1
                return

    def _let_in_sequence(self) -> None:
        """Take places and blocks from tenants that hold more than their share, for one that holds less and waits."""
        if not self.tokens.several:
            return
        asked: set[str] = set()
        for waiting in self.roster.waiting:
            if waiting.tenant in asked or not self.roster.is_ready(waiting):
                continue
            asked.add(waiting.tenant)
            cached = self.prefix.find(waiting)
            leaving = [] if cached is None else self._turns.sequences_for(waiting, cached, self.roster.running)
            if leaving:
                self.roster.put_first(waiting, leaving[0].tenant)
                for sequence in leaving:
                    self.roster.preempt(sequence)
            if leaving or waiting.skips > MAX_SKIPS:  # which holds up those behind it
                return

    # -- who computes --------------------------------------------------------------------------------

    def _go_on(self, sequence: Sequence, step: _Step) -> None:
        """Give a running sequence its share, preempting the youngest ones where blocks run out."""
        if sequence not in self.roster.running:  # preempted for the sake of an earlier one
            return
        if sequence.constraint is not None and sequence.constraint.is_held:
            self.prefix.retract(sequence)
            return
        count = self._share(sequence, step)
        if count == 0:
            return
        while not self.roster.reserve(sequence, sequence.num_computed + count):
            victim = self.roster.running[-1]
            step.budget += step.planned.pop(victim.request_id, 0)
            step.closed = True  # who was admitted now would be the next to be preempted
            self.roster.preempt(victim)
            if victim is sequence:
                return
        step.plan(sequence, count)

    def _read_prompts(self, step: _Step) -> None:
        """Deal what decoding left of the budget to prompts, of running sequences and of waiting ones.

        A tenant that holds less than its share waits for its first token until the step ends. So that this isn't long,
        tenants that hold more add nothing to it; but not twice in a row, or a trickle of short prompts would keep the
        device from being used. A prompt that the step can't read to its end leaves a part of it to short ones of its
        own tenant, and has of that what they don't take.
        """
        for sequence in self.roster.waiting[:PREFETCH]:
            if sequence.request.adapter is not None:
                self._residency.want(sequence.request.adapter)
        waiting = [] if self.roster.is_full else self.roster.waiting
        order = dict.fromkeys(self.roster.by_tenants([*self.roster.reading(), *waiting]))
        while order and step.budget:
            sequence = next(iter(order))
            del order[sequence]
            if step.begins and self.roster.excess(sequence.tenant) > 1 and not self._was_short:
                step.short = True
                continue
            quick = self._quick(sequence, order, step.budget) if sequence.num_uncomputed > step.budget else []
            kept = min(step.budget // QUICK, sum(other.num_uncomputed for other in quick))
            step.budget -= kept
            self._read_prompt(sequence, step)
            step.budget += kept
            for other in quick:
                del order[other]
                if step.budget:
                    self._read_prompt(other, step)
            if quick:
                self._read_more(sequence, step)
        self._was_short = step.short

    def _quick(self, long: Sequence, behind: Iterable[Sequence], budget: int) -> list[Sequence]:
        """Those of its tenant that a part of the budget reads to their ends, the shortest first."""
        short = [one for one in behind if one.tenant == long.tenant and one.num_uncomputed <= budget // QUICK]
        return sorted(short, key=lambda one: one.num_uncomputed)[:PREFETCH]

    def _read_prompt(self, sequence: Sequence, step: _Step) -> None:
        """Give a running sequence its share, or let a waiting one run."""
        if sequence in self.roster.running:
            self._go_on(sequence, step)
        elif not (step.closed or self.roster.is_full or sequence.tenant in step.held):
            self._admit(sequence, step)
        step.begins |= self.roster.excess(sequence.tenant) < 1 and sequence.request_id in step.planned

    def _read_more(self, sequence: Sequence, step: _Step) -> None:
        """What short ones left, to the long one that they were behind."""
        had = step.planned.get(sequence.request_id)
        if had is None or sequence.num_unscored:
            return
        count = had + min(sequence.num_uncomputed - had, step.budget)
        if count > had and self.roster.reserve(sequence, sequence.num_computed + count):
            step.budget += had
            step.plan(sequence, count)

    def _admit(self, sequence: Sequence, step: _Step) -> None:
        """Let a waiting sequence run, if its adapter is there and it has room; else see who may pass it."""
        adapter = sequence.request.adapter
        if adapter is not None and not (self._residency.want(adapter) and self.roster.is_ready(sequence)):
            self._skip(sequence, adapter.digest, step)
            return
        cached = self.prefix.find(sequence)
        if cached is None or (sequence.num_unscored and not step.scored):
            return
        # The whole sequence must fit beside those that run, not only its first chunk: it would end in preemptions else.
        needed, room = self._pool.blocks_for(sequence.num_tokens) - len(cached), self._pool.free_beside(cached)
        if needed > room or needed > room - self.roster.num_lacking:
            step.held.add(sequence.tenant)
            step.closed = sequence.skips > MAX_SKIPS
            step.passed.append(sequence)
            return
        if not self._deadlines.can_begin(sequence, len(cached) * self._pool.block_size):
            self._end_late(sequence, "would be up before its prompt is read")
            return
        for other in step.passed:
            other.skips += 1
        step.passed.clear()
        self.roster.run(sequence, cached)
        count = self._share(sequence, step)
        reserved = self.roster.reserve(sequence, sequence.num_computed + count)
        assert reserved, "blocks were counted as free"
        step.plan(sequence, count)

    def _share(self, sequence: Sequence, step: _Step) -> int:
        """What a sequence gets of a step. Where only few rows may be scored, nobody waits for its blocks."""
        count = step.share(sequence)
        if count < min(sequence.num_uncomputed, step.budget):
            self.prefix.retract(sequence)
        return count

    def _skip(self, sequence: Sequence, digest: str, step: _Step) -> None:
        """Pass over a sequence whose adapter isn't there, or is there and beyond what its tenant may take.

        Skipped too often, it holds up those behind it.

        Only a lack of room gives a right to that: a slow disk is nobody else's business, and a tenant's limit only that
        tenant's.
        """
        limited = digest in self._residency.limited or self._residency.is_resident(digest)
        if not (limited or self._residency.lacks_room(digest)):
            return
        sequence.skips += 1
        takes, limit = self._residency.nbytes(digest), sequence.request.resident_bytes
        if takes > limit > 0:
            reason = too_large(takes, sequence.asker)
            self._ended.append(self.outcomes.fail(sequence, reason, ADAPTER_TOO_LARGE))
        elif sequence.skips > MAX_SKIPS and limited:
            step.held.add(sequence.tenant)
        elif sequence.skips > MAX_SKIPS:
            step.closed = True

    def _end_late(self, sequence: Sequence, why: str) -> None:
        self._ended.append(self.outcomes.fail(sequence, late(sequence.request, why), DEADLINE_EXCEEDED))
