"""Walks of up to 100 random operations on scheduler, blocks and residency, with every invariant checked after each.

Around the deciding side stands a world that carries out what it says as the engine's core does, with a loader and
copies that are as slow as the walk wants, and that knows by itself what may be used when.

LIVERY_WALKS sets how many walks there are.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from livery.engine.base import AdapterRef, GenerationRequest, SamplingParams, TokenDelta
from livery.engine.blocks import BlockPool
from livery.engine.pages import PAGE_BYTES
from livery.engine.plan import StepPlan, StepResult
from livery.engine.residency import Residency
from livery.engine.scheduler import Scheduler
from sizes import wished

EOS = 2
BLOCK = 4
MANY = 20_000  # steps in which anything must come to an end
CROWD = 30  # requests open at a time
WALKS = wished("LIVERY_WALKS", 20)
OPERATIONS = 100  # of a walk
ADAPTERS = [f"d{number}" for number in range(8)]
TENANTS = ["t", "u", "v"]
adapters = st.sampled_from(ADAPTERS)


class Walk(RuleBasedStateMachine):
    """One engine without tensors."""

    walked: ClassVar[Counter[str]] = Counter()

    @initialize(
        blocks=st.integers(6, 20),
        running=st.integers(1, 5),
        tokens=st.integers(3, 16),
        device=st.integers(12, 40),
        host=st.integers(0, 40),
        one_memory=st.booleans(),
        sizes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=2), min_size=8, max_size=8),
        rooms=st.tuples(st.just(0), st.integers(1, 12), st.integers(6, 24)),
    )
    def start(
        self,
        blocks: int,
        running: int,
        tokens: int,
        device: int,
        host: int,
        one_memory: bool,
        sizes: list[list[int]],
        rooms: tuple[int, int, int],
    ) -> None:
        self.pool = BlockPool(blocks, BLOCK)
        self.one_memory = one_memory
        self.residency = Residency(device * PAGE_BYTES, host * PAGE_BYTES, one_memory=one_memory)
        self.scheduler = Scheduler(
            self.pool,
            self.residency,
            max_batch_tokens=max(tokens, running),
            max_running=running,
            max_model_len=blocks * BLOCK,
            eos_token_ids=(EOS,),
        )
        self.sizes = {
            name: [count * PAGE_BYTES for count in pieces] for name, pieces in zip(ADAPTERS, sizes, strict=True)
        }
        self.rooms = dict(zip(TENANTS, rooms, strict=True))  # in pages; 0: any
        self.open: set[str] = set()
        self.made = 0
        self.over = False
        self.token = 9
        self.reading: list[str] = []  # the loader's queue
        self.copying: list[str] = []
        self.images: set[str] = set()
        self.installed: set[str] = set()

    # -- what clients and operators do ---------------------------------------------------------------

    @precondition(lambda self: len(self.open) < CROWD)
    @rule(
        prompt=st.integers(1, 40),
        max_tokens=st.integers(1, 12),
        adapter=st.none() | adapters,
        tenant=st.sampled_from(TENANTS),
    )
    def add(self, prompt: int, max_tokens: int, adapter: str | None, tenant: str = "t") -> None:
        name = f"r{self.made}"
        self.made += 1
        reference = AdapterRef.of(adapter, "") if adapter else None
        length = min(prompt, self.pool.num_blocks * BLOCK - 1)
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        room = self.rooms[tenant] * PAGE_BYTES
        self.scheduler.add(
            GenerationRequest(name, [5] * length, sampling, reference, tenant=tenant, resident_bytes=room)
        )
        self.open.add(name)

    @precondition(lambda self: len(self.open) < CROWD)
    @rule(count=st.integers(5, 10), first=st.integers(0, 7), tenant=st.sampled_from(TENANTS))
    def oversubscribe(self, count: int, first: int, tenant: str) -> None:
        for number in range(count):
            self.add(3, 6, ADAPTERS[(first + number) % len(ADAPTERS)], tenant)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        assert self.scheduler.abort(name)
        self.open.remove(name)

    @rule(digest=adapters)
    def load(self, digest: str) -> None:
        if self.residency.load(AdapterRef.of(digest, "")):
            assert digest in self.images | self.installed

    @rule(digest=adapters)
    def unload(self, digest: str) -> None:
        self.residency.retire(digest)

    @rule(digest=adapters)
    def evict(self, digest: str) -> None:
        self.residency.evict(digest)

    @rule(digests=st.sets(adapters, max_size=3))
    def keep(self, digests: set[str]) -> None:
        self.residency.keep(digests)

    # -- what the loader and the device do -----------------------------------------------------------

    @precondition(lambda self: self.reading)
    @rule(fails=st.sampled_from([False, False, False, True]), seconds=st.floats(0, 2))
    def read(self, fails: bool, seconds: float) -> None:
        digest = self.reading.pop(0)
        if fails:
            self.residency.failed(digest)
            self.take(self.scheduler.fail_waiting(digest, "unreadable"))
        elif self.residency.hosted(digest, self.sizes[digest], seconds):
            self.images.add(digest)

    @precondition(lambda self: self.copying)
    @rule(seconds=st.floats(0, 1))
    def copied(self, seconds: float) -> None:
        self.finish_copy(self.copying[0], seconds)

    @rule(token=st.sampled_from([EOS, 9, 9, 9]), fails=st.sampled_from([False] * 9 + [True]))
    def step(self, token: int, fails: bool) -> None:
        self.settle()
        plan = self.scheduler.schedule()
        self.carry_out()
        self.check(plan)
        sampled = [part.request_id for part in plan.slices if part.samples]
        failed = {plan.slices[0].request_id: "bad numbers"} if fails and plan.slices else {}
        tokens = {name: (token,) for name in sampled if name not in failed}
        self.take([*self.scheduler.update(plan, StepResult(tokens, failed)), *self.scheduler.take_ended()])

    # -- carrying out --------------------------------------------------------------------------------

    def settle(self) -> None:
        self.residency.expect(self.scheduler.roster.wanted_adapters(), self.scheduler.roster.askers())
        evictions = self.residency.evictions
        placements = self.residency.place()
        assert placements or self.residency.evictions == evictions, "evicted in vain"
        self.uninstall()
        for placement in placements:
            assert placement.digest in self.images, "a copy of what isn't there"
            self.copying.append(placement.digest)
            if self.one_memory:
                self.finish_copy(placement.digest, 0.0)
        self.carry_out()

    def carry_out(self) -> None:
        self.reading += [adapter.digest for adapter in self.residency.take_loads()]
        self.uninstall()
        for digest in self.residency.take_drops():
            assert digest not in self.copying, "freed while it is copied"
            assert not (self.one_memory and digest in self.installed), "freed while it is used"
            self.images.remove(digest)

    def uninstall(self) -> None:
        for digest in self.residency.take_evictions():
            assert digest not in self.residency.pinned, "evicted in use"
            self.installed.remove(digest)

    def finish_copy(self, digest: str, seconds: float) -> None:
        self.copying.remove(digest)
        self.installed.add(digest)
        self.residency.placed(digest, seconds)

    def check(self, plan: StepPlan) -> None:
        for part in plan.slices:
            assert len(part.block_table) * BLOCK >= part.start + len(part.token_ids)
            assert part.adapter is None or part.adapter in self.installed, "computed with what isn't there"
            assert part.adapter is None or part.adapter in self.residency.pinned

    def take(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            assert delta.request_id in self.open
            if delta.finish_reason:
                self.open.remove(delta.request_id)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.walked["operations"] += not self.over
        self.scheduler.check_invariants()
        assert len(self.open) == self.scheduler.num_running + self.scheduler.num_waiting
        assert set(self.residency.resident) <= self.installed
        assert self.residency.resident_bytes <= self.residency.budget_bytes

    def teardown(self) -> None:
        """Left alone, everything that is open ends, and nothing is held for it."""
        if not hasattr(self, "scheduler"):
            return
        self.over = True
        for _ in range(MANY):
            if not self.scheduler.has_work:
                break
            while self.copying:
                self.finish_copy(self.copying[0], 0.1)
            while self.reading:
                self.read(fails=False, seconds=0.1)
            self.step(token=9, fails=False)
            self.nothing_is_lost()
        assert not self.open, "a request never ended"
        assert self.pool.num_free == self.pool.num_blocks
        assert not self.residency.pinned
        for digest in ADAPTERS:
            self.residency.retire(digest)
        self.settle()
        while self.copying:
            self.finish_copy(self.copying[0], 0.1)
        self.carry_out()
        assert self.residency.resident_bytes == self.residency.host_bytes == 0
        assert not self.images and not self.installed
        self.walked.update(walks=1, requests=self.made)


def test_nothing_is_lost_whatever_comes_in_whatever_order() -> None:
    Walk.walked.clear()
    run_state_machine_as_test(
        Walk, settings=settings(max_examples=WALKS, stateful_step_count=OPERATIONS, deadline=None)
    )
    print(f"{dict(Walk.walked)}; the seed is Hypothesis's own")
    assert Walk.walked["walks"] >= WALKS
