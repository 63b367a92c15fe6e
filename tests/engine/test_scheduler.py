"""Who computes what when, on the deciding side alone; random walks over it are in test_random_walk.py."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from livery.engine.base import AdapterRef, GenerationRequest, RequestRefused, SamplingParams, TokenDelta
from livery.engine.blocks import BlockPool
from livery.engine.pages import PAGE_BYTES
from livery.engine.plan import StepPlan, StepResult
from livery.engine.residency import Residency
from livery.engine.roster import MAX_SKIPS
from livery.engine.scheduler import Scheduler
from livery.engine.sequence import SHORT_TURN, TURN

EOS = 2


def request(name: str, prompt: int, max_tokens: int = 4, adapter: str | None = None) -> GenerationRequest:
    ref = AdapterRef.of(adapter, f"/adapters/{adapter}") if adapter else None
    return GenerationRequest(name, [5] * prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0), ref)


class House:
    """Scheduler, blocks and residency with a runner that answers at once and a loader that answers on demand."""

    def __init__(self, blocks: int = 16, budget: int = 100, running: int = 4, tokens: int = 8) -> None:
        self.pool = BlockPool(blocks, 4)
        self.residency = Residency(budget * PAGE_BYTES)  # sizes are pages here
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
        self.residency.expect(self.scheduler.roster.wanted_adapters(), self.scheduler.roster.askers())
        for adapter in self.residency.take_loads():
            self.residency.hosted(adapter.digest, [sizes[adapter.digest] * PAGE_BYTES], 1.0)
        for placement in self.residency.place():
            self.residency.placed(placement.digest, 0.1)
        self.residency.take_drops()

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


def test_a_short_prompt_waits_for_no_long_one_before_it() -> None:
    """Also of the same tenant; and what short ones don't take of their part is the long one's."""
    house = House(blocks=256, tokens=16, running=8)
    lengths = {"long": 400, "longer": 300, "middling": 6, "short": 3, "least": 2}
    for number, (name, length) in enumerate(lengths.items()):  # no two begin alike, or one would wait for the other
        house.scheduler.add(replace(request(name, length, max_tokens=1), prompt_token_ids=[20 + number] * length))
    steps = []
    for _ in range(3):
        plan = house.scheduler.schedule()
        house.check(plan)
        steps.append({part.request_id: len(part.token_ids) for part in plan.slices})
        tokens = {part.request_id: (9,) for part in plan.slices if part.samples}
        house.scheduler.update(plan, StepResult(tokens))
    # A quarter is four tokens: middling is no short one, and waits its turn behind the others.
    assert steps == [{"long": 12, "least": 2, "short": 2}, {"long": 15, "short": 1}, {"long": 16}]


def test_the_youngest_is_preempted_and_computed_again() -> None:
    house = House(blocks=4, tokens=64, running=2)
    house.scheduler.add(request("old", 7, max_tokens=6))
    house.scheduler.add(request("young", 6, max_tokens=6))
    while house.scheduler.has_work:
        house.step()
    assert house.scheduler.roster.preemptions == 1
    assert house.finished == {"old": "length", "young": "length"}
    assert house.scheduler.outcomes.prompt_tokens == 7 + 6  # those computed again don't count again
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
    house.scheduler.add(request("a", 2, max_tokens=SHORT_TURN, adapter="a"))
    house.step()
    house.load({"a": 10})
    house.step()
    house.scheduler.add(request("b", 2, adapter="b"))
    house.step()
    house.load({"a": 10, "b": 10})
    assert house.residency.resident == ("a",)
    house.residency.retire("a")
    assert house.residency.resident == ("a",), "retired, but its request runs to the end"
    while "a" not in house.finished:
        house.step()
    assert "a" not in house.residency.resident


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


def test_more_adapters_than_fit_take_turns() -> None:
    """A long answer doesn't make others wait for its end, nor does it wait for ever."""
    house = House(blocks=200, budget=10, running=3)
    names = ["a", "b", "c"]
    for name in names:
        house.scheduler.add(request(name, 4, max_tokens=150, adapter=name))
    first: dict[str, int] = {}
    gaps: dict[str, int] = dict.fromkeys(names, 0)
    last: dict[str, int] = {}
    for step in range(5000):
        house.load(dict.fromkeys(names, 10))
        for delta in house.step():
            first.setdefault(delta.request_id, step)
            gaps[delta.request_id] = max(gaps[delta.request_id], step - last.get(delta.request_id, step))
            last[delta.request_id] = step
        if not house.scheduler.has_work:
            break
    assert house.finished == dict.fromkeys(names, "length")
    assert max(first.values()) < 4 * TURN, "all have begun long before the first is done"
    assert house.scheduler.turns > 3
    assert max(gaps.values()) < 1000


def test_nobody_makes_room_before_his_turn_is_over_or_in_vain() -> None:
    house = House(blocks=200, budget=10, running=3)
    house.scheduler.add(request("a", 40, max_tokens=60, adapter="a"))
    house.step()
    house.load({"a": 10})
    house.step()
    house.scheduler.add(request("b", 4, adapter="b"))
    for _ in range(4 + SHORT_TURN):  # it reads its prompt, 8 tokens a step, and has its turn
        house.step()
        house.load({"a": 10, "b": 10})
        assert house.scheduler.turns == 0
    while not house.scheduler.turns:
        house.step()
        house.load({"a": 10, "b": 10})
    assert "a" not in house.finished
    while house.scheduler.has_work:
        house.step()
        house.load({"a": 10, "b": 10})
    assert house.scheduler.turns == 1, "nobody waited for room when b ran"


@pytest.mark.parametrize("pages", [4, 8])
def test_a_memory_in_shreds_holds_up_nobody(pages: int) -> None:
    """A large piece wants neighbouring pages: turns end until there are some, not only until enough are free."""
    house = House(blocks=600, budget=10, running=8)
    sizes = {**dict.fromkeys("abcde", 2), "large": pages}
    for name in "abcde":
        house.scheduler.add(request(name, 4, max_tokens=400 if name in "bd" else 2, adapter=name))
        for _ in range(3):
            house.step()
            house.load(sizes)
    while len(house.finished) < 3:
        house.step()
    assert set(house.residency.pinned) == {"b", "d"}
    house.scheduler.add(request("large", 4, max_tokens=2, adapter="large"))
    steps = 0
    while "large" not in house.finished:
        house.scheduler.add(request(f"base{steps}", 2, max_tokens=1))
        house.step()
        house.load(sizes)
        steps += 1
    assert steps < TURN
    assert house.scheduler.turns == pages // 4, "no more turns end than pages are short"
    assert len(house.finished) - 4 >= steps - 1, "base requests come in meanwhile"
