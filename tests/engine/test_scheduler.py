"""The deciding side alone: random walks over scheduler, blocks and residency, with invariants after each step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livery.engine.base import AdapterRef, GenerationRequest, RequestRefused, SamplingParams, TokenDelta
from livery.engine.blocks import BlockPool
from livery.engine.plan import StepPlan, StepResult
from livery.engine.residency import MAX_STAGED, Residency
from livery.engine.scheduler import MAX_SKIPS, Scheduler

EOS = 2


def request(name: str, prompt: int, max_tokens: int = 4, adapter: str | None = None) -> GenerationRequest:
    ref = AdapterRef.of(adapter, f"/adapters/{adapter}") if adapter else None
    return GenerationRequest(name, [5] * prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0), ref)


class House:
    """Scheduler, blocks and residency with a runner that answers at once and a loader that answers on demand."""

    def __init__(self, blocks: int = 16, budget: int = 100, running: int = 4, tokens: int = 8) -> None:
        self.pool = BlockPool(blocks, 4)
        self.residency = Residency(budget)
        self.finished: dict[str, str] = {}
        self.computed: dict[str, list[tuple[int, int]]] = {}
        self.scheduler = Scheduler(
            self.pool,
            self.residency,
            max_batch_tokens=tokens,
            max_running=running,
            max_model_len=blocks * 4,
            eos_token_ids=(EOS,),
        )

    def load(self, sizes: dict[str, int]) -> None:
        """Let everything asked for arrive."""
        for adapter in self.residency.take_loads():
            self.residency.staged(adapter.digest, sizes[adapter.digest])
        self.residency.place(self.scheduler.waiting_adapters())
        self.residency.take_evictions()

    def step(self, token: int = 9) -> list[TokenDelta]:
        plan = self.scheduler.schedule()
        self.check(plan)
        tokens = {part.request_id: (token,) * len(part.samples) for part in plan.slices if part.samples}
        deltas = self.scheduler.update(plan, StepResult(tokens))
        self.finished |= {d.request_id: d.finish_reason for d in deltas if d.finish_reason}
        self.scheduler.check_invariants()
        return deltas

    def check(self, plan: StepPlan) -> None:
        held = [block for part in plan.slices for block in part.block_table]
        assert len(held) == len(set(held)), "two sequences share a block"
        for part in plan.slices:
            assert len(part.block_table) * 4 >= part.start + len(part.token_ids)
            assert part.adapter is None or self.residency.is_resident(part.adapter)


def test_long_prompts_are_read_in_chunks_beside_decoding_sequences() -> None:
    house = House(blocks=32, tokens=8)
    house.scheduler.add(request("short", 3, max_tokens=20))
    house.step()
    house.scheduler.add(request("long", 20))
    plan = house.scheduler.schedule()
    shares = {part.request_id: (part.start, len(part.token_ids), len(part.samples)) for part in plan.slices}
    assert shares == {"short": (3, 1, 1), "long": (0, 7, 0)}


def test_the_youngest_is_preempted_and_computed_again() -> None:
    house = House(blocks=4, tokens=64, running=2)
    house.scheduler.add(request("old", 7, max_tokens=6))
    house.scheduler.add(request("young", 6, max_tokens=6))
    while house.scheduler.has_work:
        house.step()
    assert house.scheduler.preemptions == 1
    assert house.finished == {"old": "length", "young": "length"}
    assert house.pool.num_free == 4


def test_a_stop_token_ends_a_sequence_unless_too_early() -> None:
    house = House()
    house.scheduler.add(request("a", 2, max_tokens=9))
    assert house.step(token=EOS)[0].finish_reason == "stop"
    plain = request("b", 2, max_tokens=9)
    sampling = SamplingParams(max_tokens=9, temperature=0.0, min_tokens=2, stop_token_ids=(7,))
    house.scheduler.add(GenerationRequest("b", plain.prompt_token_ids, sampling))
    plan = house.scheduler.schedule()
    assert [spec.forbidden for spec in plan.slices[0].samples] == [(7, EOS)]


def test_a_missing_adapter_is_skipped_not_waited_for() -> None:
    house = House()
    house.scheduler.add(request("cold", 2, adapter="a"))
    house.scheduler.add(request("base", 2))
    house.step()
    assert house.scheduler.num_running == 1
    house.load({"a": 10})
    house.step()
    assert house.scheduler.num_running == 2


def test_an_adapter_skipped_too_often_is_not_starved() -> None:
    house = House(budget=10, running=2)
    house.scheduler.add(request("hot0", 2, max_tokens=40, adapter="hot"))
    house.step()
    house.load({"hot": 10})
    house.step()
    house.scheduler.add(request("cold", 2, adapter="cold"))
    served = 1
    for _ in range(8 * MAX_SKIPS):
        if house.scheduler.num_waiting < 2:  # a new hot request whenever one is done
            served += 1
            house.scheduler.add(request(f"hot{served}", 2, max_tokens=5, adapter="hot"))
        house.step()
        house.load({"hot": 10, "cold": 10})
        if "cold" in house.finished:
            break
    assert house.finished["cold"] == "length", "still waiting"


def test_a_running_adapter_is_never_evicted() -> None:
    house = House(budget=10)
    house.scheduler.add(request("a", 2, max_tokens=9, adapter="a"))
    house.step()
    house.load({"a": 10})
    house.step()
    house.scheduler.add(request("b", 2, adapter="b"))
    house.step()
    house.load({"b": 10})
    assert house.residency.resident == ("a",)
    house.residency.retire("a")
    assert house.residency.resident == ("a",), "retired, but its request runs to the end"
    while "a" not in house.finished:
        house.step()
    assert "a" not in house.residency.resident


def test_a_version_retired_while_it_loads_is_dropped_on_arrival() -> None:
    residency = Residency(10)
    ref = AdapterRef.of("a", "/adapters/a")
    assert not residency.want(ref)
    assert residency.take_loads() == [ref]
    residency.retire("a")
    assert not residency.staged("a", 5)
    assert residency.place({"a"}) == []
    assert not residency.want(ref), "wanted again, it is read again"
    assert residency.take_loads() == [ref]
    assert residency.staged("a", 5)
    assert residency.place({"a"}) == ["a"]


def test_a_slow_load_holds_nobody_up() -> None:
    house = House(running=2)
    house.scheduler.add(request("cold", 2, adapter="slow"))
    for number in range(3 * MAX_SKIPS):
        house.scheduler.add(request(f"base{number}", 2, max_tokens=1))
        house.step()
    assert len(house.finished) == 3 * MAX_SKIPS
    house.load({"slow": 10})
    while "cold" not in house.finished:
        house.step()


def test_a_version_nobody_waits_for_evicts_nobody() -> None:
    """Registering adapters reads and verifies them, but the memory belongs to those in use."""
    residency = Residency(10)
    for name in ("hot", "new"):
        residency.want(AdapterRef.of(name, name))
    residency.take_loads()
    residency.staged("hot", 8)
    assert residency.place({"hot"}) == ["hot"]
    residency.staged("new", 8)
    assert residency.place(()) == []
    assert residency.resident == ("hot",)
    assert not residency.is_staged("new"), "it would hold memory that nobody counts"


def test_what_is_placed_together_stays_together() -> None:
    residency = Residency(10)
    for name in ("a", "b", "c"):
        residency.want(AdapterRef.of(name, name))
    residency.take_loads()
    for name in ("a", "b", "c"):
        residency.staged(name, 5)
    assert residency.place({"a", "b", "c"}) == ["a", "b"]
    assert residency.take_evictions() == []
    assert residency.is_staged("c")


def test_reading_ahead_is_bounded() -> None:
    residency = Residency(10)
    for number in range(MAX_STAGED + 3):
        residency.want(AdapterRef.of(f"d{number}", "x"))
    first = residency.take_loads()
    assert len(first) == MAX_STAGED
    assert residency.take_loads() == []
    assert residency.retire(f"d{MAX_STAGED + 2}"), "one not begun is cancelled"
    residency.failed("d0")
    assert [adapter.digest for adapter in residency.take_loads()] == [f"d{MAX_STAGED}"]


@pytest.mark.parametrize("prompt", [0, 64, 100])
def test_what_can_never_run_is_refused(prompt: int) -> None:
    house = House()
    with pytest.raises(RequestRefused, match=str(prompt)):
        house.scheduler.add(request("a", prompt))
    assert not house.scheduler.has_work


def test_an_id_in_use_is_refused() -> None:
    house = House()
    house.scheduler.add(request("a", 3))
    with pytest.raises(RequestRefused, match="'a'"):
        house.scheduler.add(request("a", 3))


@given(
    seed=st.integers(0, 2**32),
    blocks=st.integers(6, 20),
    running=st.integers(1, 5),
    tokens=st.integers(1, 16),
    budget=st.integers(10, 40),
)
@settings(max_examples=60, deadline=None)
def test_random_walks_lose_nothing(seed: int, blocks: int, running: int, tokens: int, budget: int) -> None:
    rng = random.Random(seed)
    house = House(blocks, budget, running, tokens)
    sizes = {f"d{i}": rng.randrange(1, 11) for i in range(6)}
    alive: set[str] = set()
    aborted: set[str] = set()
    for number in range(120):
        action = rng.random()
        if action < 0.35:
            name = f"r{number}"
            adapter = rng.choice([None, *sizes])
            house.scheduler.add(request(name, rng.randrange(1, blocks * 2), rng.randrange(1, 9), adapter))
            alive.add(name)
        elif action < 0.45 and alive:
            name = rng.choice(sorted(alive))
            if house.scheduler.abort(name):
                aborted.add(name)
        elif action < 0.6:
            house.load(sizes)
        elif action < 0.65:
            house.residency.retire(rng.choice(sorted(sizes)))
            house.residency.take_evictions()
        else:
            house.step(token=rng.choice([EOS, 9, 9, 9]))
        house.scheduler.check_invariants()
    for _ in range(4000):
        if not house.scheduler.has_work:
            break
        house.step()
        house.load(sizes)
    assert set(house.finished) | aborted == alive
    assert house.pool.num_free == blocks
    assert not house.residency.pinned


def test_what_is_kept_makes_room_for_itself_and_goes_last() -> None:
    residency = Residency(10)
    for name in ("hot", "kept", "other"):
        residency.want(AdapterRef.of(name, name))
    residency.take_loads()
    residency.staged("hot", 8)
    assert residency.place({"hot"}) == ["hot"]
    residency.keep(["kept"])
    residency.staged("kept", 6)
    assert residency.place(()) == ["kept"], "nobody waits for it, and yet it is there"
    assert residency.take_evictions() == ["hot"]
    residency.want(AdapterRef.of("small", "small"))
    residency.take_loads()
    residency.staged("small", 4)
    assert residency.place({"small"}) == ["small"]
    residency.staged("other", 4)
    assert residency.place({"other"}) == ["other"]
    assert residency.take_evictions() == ["small"], "longer unused, but kept: the other goes"
    residency.check_invariants()


def test_what_is_kept_holds_no_request_up() -> None:
    """With no other way to make room it goes: the request would wait for ever, and in the end everybody behind it."""
    house = House(running=2)
    house.load({"kept": 90})
    house.residency.keep(["kept"])
    house.scheduler.add(request("wants", 2, adapter="large"))
    for number in range(3 * MAX_SKIPS):
        house.scheduler.add(request(f"base{number}", 2, max_tokens=1))
        house.step()
    house.load({"large": 50})
    while len(house.finished) < 3 * MAX_SKIPS + 1:
        house.step()
