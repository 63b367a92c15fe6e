"""A device that computes nothing and remembers everything: what each position of each block holds, and for whom.

The content of a position is a digest of all that its keys and values depend on (who asked, every token up to it, and
what each of them ran under), so a block that is shared wrongly, overwritten or read before it was computed shows at
the next step. The token chosen depends on that content, as it would on a real device.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import cast

import numpy as np

from livery.engine.base import AdapterRef, GenerationRequest, SamplingParams, TokenDelta, TokenLogprobs
from livery.engine.blocks import BlockPool
from livery.engine.constraint import Constraint
from livery.engine.pages import PAGE_BYTES
from livery.engine.plan import NOT_FINITE, SequenceSlice, StepPlan, StepResult, TokenMask
from livery.engine.prefix_keys import KVIdentity
from livery.engine.residency import Residency
from livery.engine.scheduler import Scheduler

EOS = 2
BLOCK = 4
SICK = "sick-"  # requests named so compute rubbish, and it shows when a token is to be chosen
SICKENS = "sickens-"  # these do from their third answered token on
RUBBISH = b"rubbish"


def request(
    name: str,
    prompt: list[int],
    max_tokens: int = 4,
    adapter: str | None = None,
    *,
    start: int = 0,
    tenant: str = "t",
    salt: str = "",
    weight: float = 1.0,
    room: int = 0,
    deadline: float = 0.0,
    scored: bool = False,
) -> GenerationRequest:
    """`room` is in pages, `deadline` in steps; `scored`: its prompt's log-probabilities are asked for."""
    ref = AdapterRef.of(adapter, f"/adapters/{name}") if adapter else None
    params = SamplingParams(
        max_tokens=max_tokens, temperature=0.0, ignore_eos=True, prompt_logprobs=0 if scored else None
    )
    return GenerationRequest(
        name,
        prompt,
        params,
        ref,
        start,
        tenant,
        salt,
        weight=weight,
        resident_bytes=room * PAGE_BYTES,
        deadline_s=deadline,
    )


def contents(request: GenerationRequest, tokens: list[int]) -> list[bytes]:
    """What each position of these tokens holds."""
    state, found = repr((request.tenant, request.cache_salt)).encode(), []
    for position, token in enumerate(tokens):
        runs_on = request.adapter.digest if request.adapter and position >= request.adapter_start else None
        state = hashlib.sha256(state + repr((token, runs_on)).encode()).digest()
        found.append(state)
    return found


def next_token(content: bytes) -> int:
    """What the simulated model says after a position."""
    return 3 + content[0] % 3


def sick_from(request: GenerationRequest) -> float:
    """The first position of a request that is rubbish."""
    if request.request_id.startswith(SICKENS):
        return len(request.prompt_token_ids) + 2
    return 0 if request.request_id.startswith(SICK) else math.inf


def answer(request: GenerationRequest) -> list[int]:
    """All tokens of a request that runs alone, without any cache."""
    tokens = list(request.prompt_token_ids)
    for _ in range(request.sampling.max_tokens):
        tokens.append(next_token(contents(request, tokens)[-1]))
    return tokens[len(request.prompt_token_ids) :]


class LateMask:
    """A grammar that allows everything, from some step on; its compiler takes until then."""

    failure = None

    def __init__(self, house: Simulation, ready: float) -> None:
        self._house, self._ready, self._late = house, ready, False

    @property
    def is_held(self) -> bool:
        return self._late and self._house.now < self._ready

    def mask(self, seconds: float) -> TokenMask | None:
        del seconds
        self._late = self._house.now < self._ready
        return None if self._late else TokenMask(np.empty(0, np.int64), allows=False, ends_only=False)

    def advance(self, token: int) -> None:
        """Whatever comes is allowed."""


class Simulation:
    """Scheduler, blocks, prefix cache and residency over that device. `tokens` per step, `budget` pages per memory."""

    def __init__(
        self,
        blocks: int = 32,
        *,
        tokens: int = 8,
        running: int = 4,
        budget: int = 100,
        speculate: int = 0,
        cache: bool = True,
        one_memory: bool = False,
        scored_rows: int = 1 << 30,
    ) -> None:
        self.now = 0.0  # a step is a second
        self.pool = BlockPool(blocks, BLOCK)
        self.residency = Residency(budget * PAGE_BYTES, budget * PAGE_BYTES, one_memory=one_memory)
        self.scheduler = Scheduler(
            self.pool,
            self.residency,
            max_batch_tokens=tokens,
            max_running=running,
            max_model_len=blocks * BLOCK,
            eos_token_ids=(EOS,),
            speculate=speculate,
            draft_rows=tokens,
            scored_rows=scored_rows,
            shared=KVIdentity("base", "static", "float32", BLOCK) if cache else None,
            weight_bytes=20 * PAGE_BYTES,
            clock=lambda: self.now,
        )
        self.requests: dict[str, GenerationRequest] = {}
        self.tokens: dict[str, list[int]] = {}
        self.scores: dict[str, list[float]] = {}
        self.finished: dict[str, str] = {}
        self.cached: dict[str, int] = {}
        self.computed = Counter[str]()  # request -> rows computed for it
        self.plans: list[StepPlan] = []
        self._memory = [[b""] * BLOCK for _ in range(blocks)]

    def add(self, asked: GenerationRequest, mask_after: int | None = None) -> None:
        """`mask_after`: steps from now until its answer's grammar is compiled; None: it has no grammar."""
        late = None if mask_after is None else cast(Constraint, LateMask(self, self.now + mask_after))
        self.scheduler.add(asked, late)
        self.requests[asked.request_id], self.tokens[asked.request_id] = asked, []
        self.scores[asked.request_id] = []

    def load(self, sizes: Mapping[str, int | Sequence[int]]) -> None:
        """Let every adapter that was asked for arrive; sizes are pages, of one piece or of several."""
        self.residency.expect(self.scheduler.roster.wanted_adapters(), self.scheduler.roster.askers())
        for adapter in self.residency.take_loads():
            size = sizes[adapter.digest]
            pieces = [size] if isinstance(size, int) else size
            self.residency.hosted(adapter.digest, [pages * PAGE_BYTES for pages in pieces], 1.0)
        evictions = self.residency.evictions
        placements = self.residency.place()
        assert placements or self.residency.evictions == evictions, "evicted in vain"
        for placement in placements:
            self.residency.placed(placement.digest, 0.1)
        self.residency.take_evictions()
        self.residency.take_drops()

    def step(self) -> list[TokenDelta]:
        self.scheduler.end_expired()
        plan = self.scheduler.schedule()
        self.plans.append(plan)
        result = self._execute(plan)
        self.now += 1
        deltas = self.scheduler.update(plan, result) + self.scheduler.take_ended()
        for delta in deltas:
            self.tokens[delta.request_id] += delta.token_ids
            self.scores[delta.request_id] += [score.logprob for score in delta.prompt_logprobs]
            self.cached[delta.request_id] = self.cached.get(delta.request_id, 0) + delta.cached_tokens
            if delta.finish_reason:
                self.finished[delta.request_id] = delta.finish_reason
        self.scheduler.check_invariants()
        return deltas

    def run(self, *asked: GenerationRequest) -> None:
        """Add these and step until nothing is left; every answer must be what its request gets alone."""
        for one in asked:
            self.add(one)
        while self.scheduler.has_work:
            self.step()
        for one in asked:
            if self.finished[one.request_id] == "length":
                assert self.tokens[one.request_id] == answer(one)

    def _execute(self, plan: StepPlan) -> StepResult:
        held = Counter(block for part in plan.slices for block in part.block_table)
        tokens, failed, scored = {}, {}, {}
        for part in plan.slices:
            end = part.start + len(part.token_ids)
            written = {part.block_table[position // BLOCK] for position in range(part.start, end)}
            assert all(held[block] == 1 for block in written), "written while another sequence holds it"
            assert not any(self.pool.is_published(block) for block in written), "written, but others may find it"
            assert part.adapter is None or self.residency.is_resident(part.adapter)
            rows = self._write(part)[len(part.token_ids) - len(part.samples) :]
            self.computed[part.request_id] += len(part.token_ids)
            scored[part.request_id] = tuple(TokenLogprobs(float(token), 1) for token in part.scored)
            mask = part.samples[0].mask if part.samples else None
            if mask is not None and mask.mask(0.0) is None:
                continue
            if rows and rows[0] == RUBBISH:
                failed[part.request_id] = NOT_FINITE
            elif rows:
                tokens[part.request_id] = tuple(map(next_token, takewhile(lambda row: row != RUBBISH, rows)))
        return StepResult(tokens, failed, scored=scored)

    def _write(self, part: SequenceSlice) -> list[bytes]:
        """Check what the slice reads and remember what it writes, which is returned."""
        asked = self.requests[part.request_id]
        known = asked.prompt_token_ids + self.tokens[part.request_id]
        ids = known[: part.start] + list(part.token_ids)
        accepted = len(ids) - len(part.drafts)
        assert ids[:accepted] == known[:accepted]
        if part.samples:
            assert accepted == len(known)
        truths = contents(asked, ids)
        for position, truth in enumerate(truths):
            row, offset = self._memory[part.block_table[position // BLOCK]], position % BLOCK
            sick = position >= sick_from(asked)
            if position >= part.start:
                row[offset] = truths[position] = RUBBISH if sick else truth
            own = row[offset] == truth or (sick and row[offset] == RUBBISH)
            assert own, f"{part.request_id} reads what is not its own at position {position}"
        return truths[part.start :]
