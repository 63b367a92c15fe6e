"""Tenants beside each other on a simulated clock: a device that computes nothing, on which a step is a second."""

from __future__ import annotations

from collections import Counter

from livery.engine.base import AdapterRef, GenerationRequest, SamplingParams, TokenDelta
from livery.engine.blocks import BlockPool
from livery.engine.fairness import ANSWER_COST, PROMPT_COST
from livery.engine.pages import PAGE_BYTES
from livery.engine.plan import StepPlan, StepResult
from livery.engine.prefix_keys import KVIdentity
from livery.engine.residency import Residency
from livery.engine.scheduler import Scheduler

BLOCK = 4


class City:
    """Tenants on one engine. Each adapter takes one page unless `load` says otherwise."""

    def __init__(
        self,
        *,
        blocks: int = 256,
        running: int = 4,
        tokens: int = 16,
        room: int = 100,
        cache: bool = False,
        weight_bytes: int = 0,
    ) -> None:
        self.now = 0.0
        self.pool = BlockPool(blocks, BLOCK)
        self.residency = Residency(room * PAGE_BYTES, 100 * PAGE_BYTES)
        self.scheduler = Scheduler(
            self.pool,
            self.residency,
            max_batch_tokens=tokens,
            max_running=running,
            max_model_len=blocks * BLOCK,
            eos_token_ids=(),
            shared=KVIdentity("base", "static", "float32", BLOCK) if cache else None,
            weight_bytes=weight_bytes,
            clock=lambda: self.now,
        )
        self.requests: dict[str, GenerationRequest] = {}
        self.came: dict[str, float] = {}
        self.first: dict[str, float] = {}  # request -> when its first token came
        self.ended: dict[str, TokenDelta] = {}
        self.served = Counter[str]()  # tenant -> costs of what was computed for it, counted apart from the scheduler
        self._read = Counter[str]()  # request -> prompt tokens computed for the first time
        self.computed = Counter[str]()  # request -> rows, each as often as it was computed

    def ask(
        self,
        tenant: str,
        prompt: int = 4,
        answer: int = 4,
        *,
        adapter: str | None = None,
        weight: float = 1.0,
        room: int = 0,
        deadline: float = 0.0,
        tokens: list[int] | None = None,
    ) -> str:
        """A request of a tenant, `room` in pages. Returns its id, which begins with the tenant."""
        name = f"{tenant}-{len(self.requests)}"
        params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)
        ids = tokens or [len(self.requests) % 50 + 3] * prompt
        ref = AdapterRef.of(adapter, f"/adapters/{adapter}") if adapter else None
        self.requests[name] = GenerationRequest(
            name, ids, params, ref, tenant=tenant, weight=weight, resident_bytes=room * PAGE_BYTES, deadline_s=deadline
        )
        self.came[name] = self.now
        self.scheduler.add(self.requests[name])
        return name

    def load(self, sizes: dict[str, int] | None = None) -> None:
        """Every adapter that was asked for arrives; sizes are pages."""
        roster = self.scheduler.roster
        self.residency.expect(roster.wanted_adapters(), roster.askers())
        for adapter in self.residency.take_loads():
            self.residency.hosted(adapter.digest, [(sizes or {}).get(adapter.digest, 1) * PAGE_BYTES], 1.0)
        for placement in self.residency.place():
            self.residency.placed(placement.digest, 0.1)
        self.residency.take_evictions()
        self.residency.take_drops()

    def step(self, seconds: float = 1.0, *, check: bool = True) -> StepPlan:
        self.scheduler.end_expired()
        plan = self.scheduler.schedule()
        tokens = {part.request_id: (9,) * len(part.samples) for part in plan.slices if part.samples}
        for part in plan.slices:
            name, asked = part.request_id, self.requests[part.request_id]
            self.computed[name] += len(part.token_ids)
            end = min(part.start + len(part.token_ids), len(asked.prompt_token_ids))
            new = max(0, end - max(part.start, self._read[name]))
            self._read[name] = max(end, self._read[name])
            self.served[asked.tenant] += PROMPT_COST * new
        self.now += seconds
        for delta in [*self.scheduler.update(plan, StepResult(tokens)), *self.scheduler.take_ended()]:
            self.served[self.requests[delta.request_id].tenant] += ANSWER_COST * len(delta.token_ids)
            if delta.token_ids:
                self.first.setdefault(delta.request_id, self.now)
            if delta.finish_reason:
                self.ended[delta.request_id] = delta
        if check:
            self.scheduler.check_invariants()
        return plan

    def run_out(self, sizes: dict[str, int] | None = None) -> None:
        while self.scheduler.has_work:
            self.step()
            self.load(sizes)

    def waiting(self, tenant: str) -> int:
        return sum(sequence.tenant == tenant for sequence in self.scheduler.roster.waiting)

    def running(self) -> Counter[str]:
        return Counter(sequence.tenant for sequence in self.scheduler.roster.running)
