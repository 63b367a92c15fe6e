"""Who computes what in the next step: the scheduler decides, nobody else.

`schedule()` hands out a budget of tokens: first to running sequences (those that need one token before those
that still read their prompt), then to waiting ones in order of arrival. `update()` takes the result back. A
sequence whose adapter isn't in device memory is skipped, not waited for; one skipped too often stops
admissions behind it, so that requests for hot adapters can't starve it. Where running requests hold all room, adapters
take turns. When blocks run out, the youngest
running sequence is preempted: its blocks are freed and its tokens computed again later, as far as the prefix cache
doesn't find them.

Where a step has rows to spare, a sequence's newest token is followed by drafts of the next ones, and each of these
rows is sampled as it would be in a step of its own. What a row says after a right draft is what it would have said
without drafts, so tokens are taken up to and with the first one that differs from its draft; positions computed
for wrong drafts count as not computed.
"""

from __future__ import annotations

import secrets
from collections import Counter
from itertools import takewhile

from livery.engine.ahead import plan_ahead
from livery.engine.base import AdapterRef, GenerationRequest, RequestRefused, TokenDelta, TokenLogprobs
from livery.engine.blocks import BlockPool
from livery.engine.constraint import Constraint
from livery.engine.plan import PoolSpec, StepPlan, StepResult
from livery.engine.prefix import PrefixCache
from livery.engine.prefix_keys import KVIdentity
from livery.engine.residency import Residency
from livery.engine.sequence import Sequence, check_request
from livery.engine.speculation import deal

# Tokens that each sequence of an adapter gets before the adapter may have to make room for another's: for sequences
# that had a turn as well, and for those whose client has seen nothing yet.
TURN, SHORT_TURN = 16, 4
MAX_SKIPS = 64  # rounds without room for its adapter before a sequence holds up those behind it
PREFETCH = 8  # waiting sequences whose adapters are fetched before there is a place for the sequence
Told = tuple[TokenLogprobs, ...]


class Scheduler:
    """The only writer of waiting, running and preemption."""

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
    ) -> None:
        """`shared`: what blocks in the prefix cache have in common; None turns it off.

        `speculate`: most drafts of a sequence in a step; `draft_rows`: rows up to which drafts fill a step;
        `scored_rows`: most rows of a step that give log-probabilities of prompts' tokens.
        """
        self._pool = pool
        self.prefix = PrefixCache(pool, shared, max_batch_tokens)
        self._residency = residency
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._max_model_len = max_model_len
        self._eos = eos_token_ids
        self._speculate = speculate
        self._draft_rows = draft_rows
        self._scored_rows = self._scored_left = scored_rows
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []  # in order of arrival; preempted ones return to the front
        self._running: list[Sequence] = []  # in order of admission
        self.preemptions = 0
        self.turns = 0  # that ended for lack of room
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0

    # -- requests ------------------------------------------------------------------------------------

    def add(self, request: GenerationRequest, constraint: Constraint | None = None) -> None:
        """Queue a request, its answer held to a grammar. Raises RequestRefused when it could never run."""
        if request.request_id in self._sequences:
            raise RequestRefused(f"request id {request.request_id!r} is already in use")
        check_request(request, self._max_model_len)
        seed = request.sampling.seed
        sequence = Sequence.of(request, secrets.randbits(63) if seed is None else seed, constraint)
        self._sequences[request.request_id] = sequence
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """Drop a request and free what it holds; False when it is already gone."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._remove(sequence)
        return True

    def fail_waiting(self, digest: str, reason: str) -> list[TokenDelta]:
        """End the waiting requests of an adapter that can't be loaded."""
        doomed = [seq for seq in self._waiting if seq.adapter == digest]
        return [self._fail(seq, reason) for seq in doomed]

    # -- one step ------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Choose the tokens of the next step and allocate their blocks."""
        self._take_turns()
        self._scored_left = self._scored_rows
        planned: dict[str, int] = {}  # request id -> tokens of this step
        budget = self._plan_running(planned, self._max_batch_tokens)
        self._admit_waiting(planned, budget)
        drafts = self._plan_drafts(planned)
        parts = ((self._sequences[request_id], count) for request_id, count in planned.items())
        plan = StepPlan(tuple(seq.slice_of(count, drafts.get(seq.request_id, []), self._eos) for seq, count in parts))
        assert plan.num_tokens <= self._max_batch_tokens, "a step over its token budget"
        assert len(self._running) <= self._max_running, "more running sequences than allowed"
        return plan

    def schedule_ahead(self, plan: StepPlan) -> StepPlan | None:
        """The step after `plan`, whose result isn't there yet; None while somebody waits or drafts are made."""
        for sequence in self._running:
            sequence.in_flight = 0
        if self._waiting or self._speculate:
            return None
        return plan_ahead(plan, self._running, self._sequences, self._reserve, self._eos, self._max_model_len)

    def update(self, plan: StepPlan, result: StepResult) -> list[TokenDelta]:
        """Advance the sequences of an executed plan. Requests aborted meanwhile are passed over."""
        deltas = []
        for part in plan.slices:
            sequence = self._sequences.get(part.request_id)
            if sequence is None or sequence.num_computed != part.start:  # planned ahead for one that is gone
                continue
            if sequence.constraint is not None and sequence.constraint.failure:
                deltas.append(self._fail(sequence, sequence.constraint.failure))
                continue
            if reason := result.failed.get(part.request_id):
                if part.drafts:  # they may be to blame: it is computed again without
                    sequence.drafter.silence()
                    self._trim(sequence)
                else:
                    self.prefix.distrust(sequence)
                    deltas.append(self._fail(sequence, reason))
                continue
            scores = sequence.take_scores(part.start, result.scored.get(part.request_id, ()))
            sequence.num_computed += len(part.token_ids) - len(part.drafts)
            self.prompt_tokens += sequence.count_prompt(part)
            if part.pool is not None:
                deltas += self._pool_on(sequence, part.pool, result.pooled[part.request_id])
            elif part.samples and part.request_id not in result.tokens:
                sequence.num_computed -= 1  # its newest token is computed again once its mask is there
            elif part.samples:
                tokens = self._checked(sequence, part.drafts, result)
                logprobs = result.logprobs.get(part.request_id, ())
                deltas.append(self._append(sequence, tokens, logprobs, scores))
                continue
            if scores:
                deltas.append(TokenDelta(part.request_id, [], prompt_logprobs=scores))
        return deltas

    # -- how things stand ----------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def waiting_adapters(self) -> tuple[str, ...]:
        """Versions that waiting requests ask for and that are not resident."""
        wanted = dict.fromkeys(seq.adapter for seq in self._waiting if seq.adapter)
        return tuple(digest for digest in wanted if not self._residency.is_resident(digest))

    def wanted_adapters(self) -> list[str]:
        """Versions that waiting requests ask for, in the order of the queue."""
        return [seq.adapter for seq in self._waiting if seq.adapter]

    def waiting_for(self, digest: str) -> list[AdapterRef]:
        """A version as each waiting request for it names it."""
        adapters = (seq.request.adapter for seq in self._waiting)
        return [adapter for adapter in adapters if adapter is not None and adapter.digest == digest]

    def check_invariants(self) -> None:
        """Blocks and sequences add up. For tests and for idle moments."""
        self._pool.check_invariants()
        self._residency.check_invariants()
        self.prefix.check_invariants(self._running)
        holders = Counter(block for seq in self._sequences.values() for block in seq.blocks)
        assert len(holders) + self._pool.num_free == self._pool.num_blocks, "blocks held by no sequence"
        assert all(self._pool.holders(block) == count for block, count in holders.items()), "holders miscounted"
        assert not any(seq.blocks for seq in self._waiting), "a waiting sequence holds blocks"
        assert len(self._waiting) + len(self._running) == len(self._sequences)

    # -- inside --------------------------------------------------------------------------------------

    def _take_turns(self) -> None:
        """Order the waiting, and let adapters that had their turn make room for the first that waits for some.

        Requests of more adapters than fit would else wait for others' last tokens. Those that had no turn go first,
        as their clients have seen nothing yet; one skipped too often goes before all. At most one adapter is let in
        per step, so that what it costs to go and come back stays small beside what is computed.
        """
        self._waiting.sort(key=lambda seq: (seq.skips <= MAX_SKIPS, seq.turns))
        for waiting in self._waiting:
            if waiting.adapter is not None and self._residency.lacks_room(waiting.adapter):
                self._make_room(waiting.adapter, TURN if waiting.turns else SHORT_TURN)
                return

    def _make_room(self, digest: str, turn: int) -> None:
        """Let a version in for adapters that had a turn of so many tokens, the longest first, if that is enough."""
        left: dict[str, int] = {}  # adapter -> tokens that one of its sequences still has to get
        for sequence in self._running:
            if sequence.adapter is not None:
                rest = sequence.left_of_turn(turn, recomputed=not self.prefix.is_on)
                left[sequence.adapter] = max(left.get(sequence.adapter, rest), rest)
        ended = sorted((adapter for adapter in left if left[adapter] <= 0), key=left.__getitem__)
        count = next((n for n in range(len(ended) + 1) if self._residency.frees_enough(digest, ended[:n])), 0)
        for adapter in ended[:count]:
            for sequence in [sequence for sequence in self._running if sequence.adapter == adapter]:
                self._leave_running(sequence)
                sequence.num_computed = 0  # but for what the prefix cache keeps
                sequence.turns += 1
                self._waiting.append(sequence)
            self._residency.evict(adapter)  # or they would come back at once
            self.turns += 1

    def _plan_running(self, planned: dict[str, int], budget: int) -> int:
        """Give running sequences their share; returns what is left of the budget."""
        for sequence in sorted(self._running, key=lambda seq: seq.num_uncomputed > 1):
            if sequence not in self._running:  # preempted for the sake of an earlier one
                continue
            if sequence.constraint is not None and sequence.constraint.is_held:
                continue
            count = self._share(sequence, budget)
            if count == 0:
                continue
            while not self._reserve(sequence, sequence.num_computed + count):
                victim = self._running[-1]
                budget += planned.pop(victim.request_id, 0)
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                planned[sequence.request_id] = count
                budget -= count
                self._scored_left -= min(count, sequence.num_unscored)
        return budget

    def _share(self, sequence: Sequence, budget: int) -> int:
        """Positions that a sequence gets of a step's budget, and of its rows to be scored."""
        count = min(sequence.num_uncomputed, budget)
        return min(count, self._scored_left) if sequence.num_unscored > self._scored_left else count

    def _admit_waiting(self, planned: dict[str, int], budget: int) -> None:
        for sequence in self._waiting[:PREFETCH]:
            if sequence.request.adapter is not None:
                self._residency.want(sequence.request.adapter)
        for sequence in list(self._waiting):
            if budget == 0 or len(self._running) == self._max_running:
                return
            adapter = sequence.request.adapter
            if adapter is not None and not self._residency.want(adapter):
                # Only a lack of room gives a right to hold others up: a slow disk is nobody else's business.
                sequence.skips += self._residency.lacks_room(adapter.digest)
                if sequence.skips > MAX_SKIPS:
                    return
                continue
            cached = self.prefix.find(sequence)
            if cached is None or (sequence.num_unscored and not self._scored_left):
                continue
            # The whole sequence must fit, not only its first chunk: admitting more would end in preemptions.
            if self._pool.blocks_for(sequence.num_tokens) - len(cached) > self._pool.free_beside(cached):
                return
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.skips, sequence.turn_began = 0, sequence.num_tokens
            if adapter is not None:
                self._residency.pin(adapter.digest)
            self.prefix.enter(sequence, cached)
            count = self._share(sequence, budget)
            self._scored_left -= min(count, sequence.num_unscored)
            reserved = self._reserve(sequence, sequence.num_computed + count)
            assert reserved, "blocks were counted as free"
            planned[sequence.request_id] = count
            budget -= count

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Let the sequence hold the blocks of its first `num_tokens` positions, if enough are free."""
        blocks = self._pool.allocate(self._pool.blocks_for(num_tokens) - len(sequence.blocks))
        if blocks is None:
            return False
        sequence.blocks.extend(blocks)
        return True

    def _plan_drafts(self, planned: dict[str, int]) -> dict[str, list[int]]:
        """Drafts for sequences that are sampled, with rows and blocks that nothing else in this step asks for."""
        spare = min(self._draft_rows, self._max_batch_tokens) - sum(planned.values())
        if spare <= 0:
            return {}
        sequences = [self._sequences[request_id] for request_id in planned]
        sampled = [sequence for sequence in sequences if sequence.is_sampled_after(planned[sequence.request_id])]
        wishes = []
        for sequence in sampled:
            # A grammar's masks are worked out for one token after the other.
            most = 0 if sequence.constraint else min(self._speculate, sequence.room(self._max_model_len) - 1)
            wishes.append(sequence.drafter.propose(sequence.tokens, most, sequence.stops(self._eos)))
        drafts = {}
        for sequence, wish, share in zip(sampled, wishes, deal(list(map(len, wishes)), spare), strict=True):
            while share and not self._reserve(sequence, sequence.num_tokens + share):
                share -= 1
            drafts[sequence.request_id] = wish[:share]
        return drafts

    def _checked(self, sequence: Sequence, drafts: tuple[int, ...], result: StepResult) -> tuple[int, ...]:
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

    def _append(self, sequence: Sequence, tokens: tuple[int, ...], logprobs: Told, scores: Told) -> TokenDelta:
        """Take new tokens up to the one that ends the sequence, if one does."""
        cached = 0 if sequence.num_generated else sequence.cached_tokens or 0
        appended = []
        reason = None
        for token in tokens:
            sequence.tokens.append(token)
            appended.append(token)
            self.generated_tokens += 1
            if reason := sequence.finish_reason(self._eos, self._max_model_len):
                break
            if sequence.constraint is not None:
                sequence.constraint.advance(token)
        self.prefix.publish(sequence)
        self._trim(sequence)
        if reason is not None:
            self._remove(sequence)
        told = logprobs[: len(appended)]
        name = sequence.request_id
        return TokenDelta(name, appended, reason, cached_tokens=cached, logprobs=told, prompt_logprobs=scores)

    def _pool_on(self, sequence: Sequence, spec: PoolSpec, vector: bytes) -> list[TokenDelta]:
        """Keep what a prompt came to so far, or end with it."""
        sequence.pooled = vector
        if not spec.last:
            return []
        self.prefix.publish(sequence)
        self._remove(sequence)
        cached = sequence.cached_tokens or 0
        return [TokenDelta(sequence.request_id, [], "stop", cached_tokens=cached, pooled=vector)]

    def _trim(self, sequence: Sequence) -> None:
        """Give back what only drafts needed, so that they never take a block that another sequence asks for."""
        needed = self._pool.blocks_for(sequence.num_computed + sequence.in_flight)
        self._pool.free(sequence.blocks[needed:])
        del sequence.blocks[needed:]

    def _fail(self, sequence: Sequence, error: str) -> TokenDelta:
        self._remove(sequence)
        return TokenDelta(sequence.request_id, [], "error", error)

    def _preempt(self, sequence: Sequence) -> None:
        self._leave_running(sequence)
        sequence.num_computed = 0
        self._waiting.insert(0, sequence)
        self.preemptions += 1

    def _remove(self, sequence: Sequence) -> None:
        if sequence in self._running:
            self._leave_running(sequence)
        else:
            self._waiting.remove(sequence)
        del self._sequences[sequence.request_id]

    def _leave_running(self, sequence: Sequence) -> None:
        """The one way out of running: blocks and the hold on the adapter go together."""
        self._running.remove(sequence)
        self.prefix.leave(sequence)
        if sequence.adapter is not None:
            self._residency.unpin(sequence.adapter)
