"""Which requests vLLM is given, and when: without vLLM, which is told of the outcome only."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from livery.engine.base import AdapterRef, Asker, GenerationRequest, SamplingParams
from livery.engine.fairness import ANSWER_COST, PROMPT_COST
from livery.engine.roster import MAX_SKIPS
from livery.engine.vllm_queue import SPARE, VllmQueue

RUNNING, SLOTS, SLOT = 8, 3, 1000
PLACES = RUNNING + RUNNING // SPARE
PROMPT, ANSWER = 10, 20


def ask(name: str, tenant: str = "a", adapter: str = "", weight: float = 1.0, limit: int = 0) -> GenerationRequest:
    held = AdapterRef.of(adapter, f"/nowhere/{adapter}") if adapter else None
    sampling = SamplingParams(max_tokens=ANSWER)
    return GenerationRequest(name, [1] * PROMPT, sampling, held, tenant=tenant, weight=weight, resident_bytes=limit)


class Bench:
    """A queue with its requests, and what came of them."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.queue = VllmQueue(RUNNING, slots, SLOT)
        self.slots = slots
        self.turns: dict[str, asyncio.Future[int]] = {}
        self.requests: dict[str, GenerationRequest] = {}
        self.pinned: set[str] = set()

    def enter(self, request: GenerationRequest) -> None:
        self.requests[request.request_id] = request
        self.turns[request.request_id] = self.queue.enter(request, 1.0)
        self.check()

    def answer(self, name: str) -> None:
        """vLLM reads its prompt, answers, and is done with it."""
        self.queue.read(name, 0)
        self.queue.answered(name, ANSWER)
        self.leave(name)

    def leave(self, name: str) -> None:
        self.queue.leave(self.requests.pop(name))
        del self.turns[name]
        self.check()

    @property
    def handed(self) -> list[str]:
        return [name for name, turn in self.turns.items() if turn.done()]

    @property
    def waiting(self) -> list[str]:
        return [name for name, turn in self.turns.items() if not turn.done()]

    def check(self) -> None:
        """What vLLM could never be asked for, and that nobody waits in vain."""
        adapters = {
            request.adapter.digest for request in map(self.requests.get, self.handed) if request and request.adapter
        }
        assert len(self.handed) <= PLACES and len(adapters | self.pinned) <= self.slots
        assert self.queue.waiting == len(self.waiting)
        if len(self.handed) < PLACES and len(adapters | self.pinned) < self.slots:
            assert not [name for name in self.waiting if not self.requests[name].resident_bytes]


async def test_vllm_has_as_many_as_run_and_a_few_more() -> None:
    bench = Bench()
    for number in range(20):
        bench.enter(ask(f"r{number}"))
    assert bench.handed == [f"r{number}" for number in range(PLACES)]
    bench.answer("r4")
    assert bench.handed[-1] == f"r{PLACES}" and len(bench.handed) == PLACES


async def test_whoever_comes_is_next_whatever_another_has_waiting() -> None:
    bench = Bench()
    for number in range(50):
        bench.enter(ask(f"flood{number}", "flood"))
    bench.enter(ask("new", "quiet"))
    bench.answer("flood0")
    assert "new" in bench.handed
    bench.answer("flood1")
    # At vLLM as well it comes before what the flood has there after it.
    assert bench.turns["new"].result() < bench.turns[f"flood{PLACES}"].result()


@pytest.mark.parametrize("weight", [1.0, 3.0])
async def test_tenants_that_always_wait_are_served_by_weight(weight: float) -> None:
    bench, order, served = Bench(), random.Random(1), Counter[str]()
    numbers = iter(range(10_000))
    for tenant in ("a", "b"):
        for _ in range(3 * PLACES):
            bench.enter(ask(f"{tenant}{next(numbers)}", tenant, weight=weight if tenant == "b" else 1.0))
    bound = 2 * max(PROMPT_COST * PROMPT, ANSWER_COST * PLACES * ANSWER)
    for _ in range(600):
        name = order.choice(bench.handed)
        tenant = name[0]
        served[tenant] += PROMPT_COST * PROMPT + ANSWER_COST * ANSWER
        bench.answer(name)
        bench.enter(ask(f"{tenant}{next(numbers)}", tenant, weight=weight if tenant == "b" else 1.0))
        assert abs(served["a"] - served["b"] / weight) <= bound
    assert served["b"] / served["a"] == pytest.approx(weight, rel=0.2)


async def test_what_the_prefix_cache_had_costs_nothing() -> None:
    bench = Bench()
    for number in range(3 * PLACES):
        bench.enter(ask(f"a{number}", "a"))
        bench.enter(ask(f"b{number}", "b"))
    for name in list(bench.handed):
        bench.queue.read(name, PROMPT if name.startswith("b") else 0)
    for name in [*bench.handed][:4]:
        bench.answer(name)
    assert [name[0] for name in bench.handed[-2:]] == ["b", "b"]


async def test_no_more_adapters_are_asked_for_than_there_are_slots() -> None:
    bench = Bench()
    for number in range(PLACES - 1):
        bench.enter(ask(f"r{number}", adapter=f"adapter{number % 4}"))
    assert bench.waiting == ["r3", "r7"]
    bench.enter(ask("base"))
    bench.enter(ask("hot", adapter="adapter1"))
    assert bench.waiting == ["r3", "r7"], "others pass those whose adapter has no slot"
    for name in ("r0", "r4"):
        bench.answer(name)
    assert not bench.waiting


async def test_who_was_passed_too_often_holds_up_those_behind() -> None:
    bench = Bench()
    for number in range(3):
        bench.enter(ask(f"hot{number}", adapter=f"hot{number}"))
    bench.enter(ask("cold", adapter="cold"))
    for number in range(MAX_SKIPS + 1):
        bench.enter(ask(f"next{number}", adapter="hot0"))
        bench.answer(f"next{number}")
    bench.queue.enter(ask("late", adapter="hot0"), 1.0)
    assert bench.queue.waiting == 2
    bench.requests["hot1"] = ask("hot1", adapter="hot1")
    bench.queue.leave(bench.requests["hot1"])
    assert bench.turns["cold"].done() and bench.queue.waiting == 0


async def test_pinned_adapters_have_slots_of_their_own() -> None:
    bench = Bench()
    for number in range(3):
        bench.enter(ask(f"r{number}", adapter=f"adapter{number}"))
    bench.queue.pin(["kept"])
    assert not bench.queue.pins_fit
    free = asyncio.create_task(bench.queue.pins_free())
    await asyncio.sleep(0)
    bench.turns["again"] = bench.queue.enter(ask("again", adapter="adapter1"), 1.0)
    assert not bench.turns.pop("again").done(), "or the slots might never come free"
    bench.queue.leave(ask("r0", adapter="adapter0"))
    await free
    assert bench.queue.waiting == 0, "beside the kept one there are two"


async def test_a_tenants_adapters_take_what_its_limit_allows() -> None:
    bench = Bench()
    bench.enter(ask("first", "small", "one", limit=2 * SLOT - 1))
    bench.enter(ask("second", "small", "two", limit=2 * SLOT - 1))
    bench.enter(ask("other", "large", "two"))
    assert bench.waiting == ["second"]
    bench.answer("first")
    assert not bench.waiting and bench.queue.take_idle() == ["one"], "what it ran before leaves the device"
    assert bench.queue.take_idle() == []
    assert bench.queue.is_too_large(Asker("tiny", 1.0, SLOT - 1))
    assert not bench.queue.is_too_large(Asker("small", 1.0, SLOT))


async def test_what_is_brought_in_ahead_counts_and_may_have_to_stay_off_the_device() -> None:
    bench = Bench()
    asker = Asker("small", 1.0, SLOT)
    assert bench.queue.bring("one", asker)
    assert bench.queue.bring("two", asker) and bench.queue.take_idle() == ["one"]
    bench.enter(ask("running", "small", "two", limit=SLOT))
    assert not bench.queue.bring("one", asker)
    bench.queue.forget("one")
    bench.answer("running")
    bench.queue.forget("two")
    assert bench.queue.bring("one", asker) and bench.queue.take_idle() == []


async def test_who_gives_up_waiting_is_forgotten() -> None:
    bench = Bench()
    for number in range(PLACES + 2):
        bench.enter(ask(f"r{number}", "a" if number < PLACES else "b"))
    bench.leave(f"r{PLACES}")
    bench.answer("r0")
    assert f"r{PLACES + 1}" in bench.handed
    assert [(one.tenant, one.waiting, one.running) for one in bench.queue.standings()] == [
        ("a", 0, PLACES - 1),
        ("b", 0, 1),
    ]


async def test_any_order_of_events_keeps_to_what_vllm_can_do() -> None:
    order = random.Random(7)
    bench = Bench()
    for number in range(4000):
        if bench.turns and order.random() < 0.5:
            name = order.choice([*bench.turns])
            (bench.answer if name in bench.handed else bench.leave)(name)
        else:
            tenant = order.choice("abc")
            adapter = order.choice(["", *(f"adapter{index}" for index in range(6))])
            bench.enter(ask(f"r{number}", tenant, adapter, order.choice([1.0, 4.0])))
    while bench.turns:
        bench.answer(bench.handed[0])
