"""Tenants beside each other on a simulated clock: what each is served, how long each waits, and what it holds.

The device computes nothing: each sampled row answers the same token. A step is a second. LIVERY_FAIRNESS_STEPS sets
how many steps are compared.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from engine.city import BLOCK, City
from livery.engine.base import AdapterRef
from livery.engine.fairness import ANSWER_COST, PROMPT_COST
from livery.engine.pages import PAGE_BYTES
from livery.engine.plan import StepPlan
from livery.engine.roster import MAX_SKIPS
from livery.engine.sequence import TURN
from sizes import SEED, wished

STEPS = wished("LIVERY_FAIRNESS_STEPS", 6_000)
COLD_STEPS = max(STEPS, 18_000)
LONGEST = 24  # tokens of a prompt


def check_nobody_idles(city: City, plan: StepPlan) -> None:
    """Work-conserving: while anything that waits could run, something is computed."""
    roster = city.scheduler.roster
    assert plan.slices or not any(roster.is_ready(sequence) for sequence in roster.waiting)


@pytest.mark.parametrize(
    ("weight", "seed"), [(1.0, 1), (1.0, 2), (3.0, 3), (3.0, 4), (0.25, 5)], ids=lambda value: f"{value:g}"
)
def test_services_of_tenants_that_wait_all_the_time_differ_by_no_more_than_the_bound(weight: float, seed: int) -> None:
    """Tenants a and b always have requests waiting; c comes and goes, and crowds of it at that."""
    seed += SEED
    rng = random.Random(seed)
    city = City(blocks=48, running=6, tokens=20, cache=rng.random() < 0.5)
    weights = {"a": 1.0, "b": weight, "c": 1.0}
    # max(w_p * L, w_q * M), M what the blocks hold, over the lowest weight.
    bound = 2 * max(PROMPT_COST * LONGEST, ANSWER_COST * 48 * BLOCK) / min(weights.values())
    # The two differ in what they ask: short prompts and long answers against long prompts and short answers.
    shapes = {"a": (4, 30), "b": (LONGEST, 4), "c": (12, 12)}

    def ask(tenant: str) -> None:
        prompt, answer = shapes[tenant]
        city.ask(tenant, rng.randrange(1, prompt + 1), rng.randrange(1, answer + 1), weight=weights[tenant])

    lowest = highest = 0.0
    for step in range(STEPS):
        for tenant in "ab":
            while city.waiting(tenant) < 3:
                ask(tenant)
        if rng.random() < 0.02:
            for _ in range(rng.randrange(1, 12)):
                ask("c")
        check_nobody_idles(city, city.step(check=step % 100 == 0))
        difference = city.served["a"] / weights["a"] - city.served["b"] / weights["b"]
        lowest, highest = min(lowest, difference), max(highest, difference)
    print(
        f"seed {seed}, weights 1:{weight:g}, {STEPS} steps, {len(city.ended)} requests: served {dict(city.served)}; "
        f"the difference went from {lowest:.0f} to {highest:.0f}, the bound is {bound:.0f}"
    )
    assert highest - lowest <= bound


def test_a_cold_adapter_is_not_starved_by_another_tenants_hot_one() -> None:
    """A, B, A, A, ... with room for one adapter."""
    city = City(room=1, running=2, tokens=16)
    seed = 6 + SEED
    rng = random.Random(seed)
    waits = []
    pending: str | None = None
    for step in range(COLD_STEPS):
        while city.waiting("a") < 4:
            city.ask("a", rng.randrange(1, 9), rng.randrange(1, 30), adapter="hot")
        if pending in city.first:
            waits.append(city.first[pending] - city.came[pending])
            pending = None
        if pending is None and step % 50 == 0:
            pending = city.ask("b", 4, 4, adapter="cold")
        city.step(check=False)
        city.load()
    waits.sort()
    bound = MAX_SKIPS + 2 * TURN
    print(
        f"seed {seed}, {COLD_STEPS} steps: {len(waits)} requests for the cold adapter waited "
        f"{waits[len(waits) // 2]:.0f} steps in the middle and {waits[-1]:.0f} at most; the bound is {bound}"
    )
    assert len(waits) > 100
    assert waits[-1] <= bound


def test_a_flood_takes_nobodys_place() -> None:
    """Long answers of one tenant fill all places; another's request is let in with the next step and then stays."""
    city = City(running=4)
    for _ in range(40):
        city.ask("flood", 4, 100)
    for _ in range(10):
        city.step()
    assert city.running() == {"flood": 4}
    quiet = city.ask("quiet", 4, TURN + 4)
    while quiet not in city.ended:
        city.step()
    assert city.first[quiet] - city.came[quiet] == 1
    assert city.ended[quiet].finish_reason == "length"
    assert city.now - city.came[quiet] == TURN + 4, "it was preempted"
    city.run_out()
    assert {delta.finish_reason for delta in city.ended.values()} == {"length"}


def test_who_loses_least_makes_room() -> None:
    """An answer finds itself in the prefix cache again; a prompt in mid-read would begin anew."""
    city = City(cache=True, running=2, tokens=16)
    answering = city.ask("a", 8, 60)
    reading = city.ask("a", 400, 1)
    for _ in range(5):
        city.step()
    quiet = city.ask("b", 4, 1)
    city.step()
    assert quiet in city.first
    city.run_out()
    assert city.computed[reading] == 400
    assert city.scheduler.roster.preemptions == 1 and answering in city.ended


def test_places_are_shared_by_weight() -> None:
    city = City(running=8, tokens=64)
    for _ in range(40):
        city.ask("a", 4, 200)
    for _ in range(5):
        city.step()
    for _ in range(40):
        city.ask("b", 4, 200, weight=3.0)
    for _ in range(20):
        city.step()
    assert city.running() == {"a": 2, "b": 6}
    preempted = city.scheduler.roster.preemptions
    for _ in range(50):
        city.step()
    assert city.scheduler.roster.preemptions == preempted, "shares are settled, and still somebody is thrown out"


@pytest.mark.parametrize(("tenants", "places"), [("ab", 5), ("abc", 16), ("abcdefg", 16)])
def test_places_that_leave_a_remainder_are_no_reason_to_throw_anybody_out(tenants: str, places: int) -> None:
    """Two of three tenants have 5 of 16 places, less than a third, and the third has 6: so it stays."""
    city = City(blocks=1000, running=places, tokens=256)
    for _ in range(600):
        for tenant in tenants:
            while city.waiting(tenant) < 3:
                city.ask(tenant, 40, 32)
        city.step(check=False)
    print(f"{len(city.ended)} requests were answered; {city.scheduler.roster.preemptions} times one was thrown out")
    assert city.scheduler.roster.preemptions <= len(city.ended) / 4
    assert max(city.served.values()) - min(city.served.values()) <= 2 * ANSWER_COST * places * 72


def test_blocks_are_shared_too() -> None:
    """Two long answers hold nearly all blocks; a tenant with less than its share takes what it needs."""
    city = City(blocks=32, running=8, tokens=64)
    for _ in range(2):
        city.ask("a", 48, 40)
    for _ in range(12):
        city.step()
    assert city.pool.num_free < 8
    quiet = city.ask("b", 30, 4)
    city.step()
    assert quiet in city.first
    city.run_out()
    assert {delta.finish_reason for delta in city.ended.values()} == {"length"}


def test_a_long_prompt_delays_nobody_elses_short_one() -> None:
    city = City(blocks=512, tokens=16)
    city.ask("a", 1000, 4)
    city.ask("a", 500, 4)
    for _ in range(3):
        city.step()
    short = city.ask("b", 8, 4)
    city.step()
    assert short in city.first


def test_a_first_token_waits_for_no_prompts_of_those_above_their_share() -> None:
    """But these are read in every other step at least, whatever else comes."""
    city = City(blocks=512, running=8, tokens=40)
    for _ in range(6):
        city.ask("a", 12, 60)
    for _ in range(3):
        city.step()
    city.ask("a", 1000, 4)
    read = Counter[str]()
    for step in range(20):
        city.ask("b", 2, 1)
        for part in city.step().slices:
            if len(part.token_ids) > 1:
                read[part.request_id[0]] += 1
                assert step % 2 or part.request_id[0] == "b"
    assert read == {"a": 10, "b": 20}


def test_one_tenants_requests_come_in_order() -> None:
    city = City(running=2)
    names = [city.ask("a", 6, 3) for _ in range(12)]
    for _ in range(6):
        city.ask("b", 3, 8)
    city.run_out()
    assert sorted(names, key=lambda name: city.first[name]) == names


def test_what_was_missed_while_away_is_not_made_up_for() -> None:
    city = City(running=4, tokens=16)
    for _ in range(50):
        city.ask("a", 4, 20)
    for _ in range(100):
        city.step()
    served = city.served.copy()
    for _ in range(50):
        city.ask("b", 4, 20)
    for _ in range(60):
        city.step()
    share = (city.served["b"] - served["b"]) / (city.served["a"] - served["a"] + city.served["b"] - served["b"])
    assert 0.4 < share < 0.6


def test_what_was_not_asked_for_is_not_made_up_for_either() -> None:
    """One long answer beside a flood is less than a fair share; requests that come later don't get the rest of it."""
    city = City(running=4, tokens=16, blocks=512)
    for _ in range(200):
        city.ask("a", 4, 20)
    city.ask("b", 4, 400)
    for _ in range(200):
        city.step()
    assert city.waiting("b") == 0
    served = city.served.copy()
    for _ in range(50):
        city.ask("b", 4, 20)
    for _ in range(60):
        city.step()
    share = (city.served["b"] - served["b"]) / (city.served["a"] - served["a"] + city.served["b"] - served["b"])
    assert 0.4 < share < 0.6


def test_a_token_costs_what_is_streamed_for_it() -> None:
    """A tenant whose adapter is as large as the base gets half the tokens."""
    city = City(running=4, weight_bytes=10 * PAGE_BYTES)
    for _ in range(200):
        city.ask("plain", 4, 8)
        city.ask("large", 4, 8, adapter="huge")
    city.step()
    city.load({"huge": 10})
    before = city.served.copy()
    for _ in range(150):
        city.step()
    share = (city.served["large"] - before["large"]) / (city.served["plain"] - before["plain"])
    assert 0.4 < share < 0.6


def test_tokens_found_in_the_prefix_cache_cost_nothing() -> None:
    city = City(cache=True, tokens=64)
    words = list(range(3, 35))
    for _ in range(3):
        city.ask("a", answer=1, tokens=words)
        city.run_out()
    # All but the newest token's block is found again.
    counter = city.scheduler.tokens
    city.ask("a", 4, 1)
    assert counter.counter("a") == 32 + 3 * 2 + 2 * BLOCK


def test_what_is_computed_again_is_charged_once() -> None:
    city = City(blocks=8, running=2, tokens=64)
    city.ask("a", 10, 18)
    city.ask("a", 10, 18)
    city.run_out()
    assert city.scheduler.roster.preemptions
    city.ask("a", 4, 1)
    assert city.scheduler.tokens.counter("a") == 2 * (10 + 2 * 18)


def test_a_request_whose_time_is_up_ends_waiting_or_running() -> None:
    city = City(running=1)
    running = city.ask("a", 4, 100, deadline=10)
    waiting = city.ask("a", 4, 4, deadline=5)
    for step in range(12):
        city.step()
        assert (waiting in city.ended) == (step >= 5)
        assert (running in city.ended) == (step >= 10)
    assert not city.scheduler.has_work
    assert city.pool.num_free == city.pool.num_blocks
    for name in (running, waiting):
        assert (city.ended[name].finish_reason, city.ended[name].code) == ("error", "deadline_exceeded")


def test_the_adapter_of_a_request_whose_time_is_up_is_let_go() -> None:
    city = City()
    city.ask("a", 4, 100, adapter="x", deadline=5)
    for _ in range(10):
        city.step()
        city.load()
    assert not city.residency.pinned and city.residency.evict("x")


def test_what_can_not_be_read_in_time_is_not_begun() -> None:
    city = City(blocks=512, tokens=16)
    city.ask("a", 160, 1)
    city.run_out()  # 16 tokens a second
    late = city.ask("a", 160, 1, deadline=9)
    early = city.ask("a", 160, 1, deadline=11)
    city.run_out()
    assert (city.ended[late].code, city.ended[early].finish_reason) == ("deadline_exceeded", "length")
    assert late not in city.computed


def test_small_prompts_say_nothing_about_how_fast_large_ones_are_read() -> None:
    """A step takes a second whatever it computes: 20 tokens a second of small prompts, 64 of large ones."""
    city = City(blocks=512, tokens=64)
    for _ in range(20):
        city.ask("a", 20, 1)
        city.run_out()
    large = city.ask("a", 640, 1, deadline=11)
    city.run_out()
    assert city.ended[large].finish_reason == "length"


def test_a_pace_that_nothing_confirms_refuses_nothing_for_ever() -> None:
    city = City(blocks=512, tokens=16)
    city.ask("a", 16, 1)
    city.step(100.0)  # as a first step may take
    early = city.ask("a", 160, 1, deadline=12)
    city.run_out()
    for _ in range(10):  # none of these tells a pace
        city.ask("a", 4, 8)
        city.run_out()
    late = city.ask("a", 160, 1, deadline=12)
    city.run_out()
    assert (city.ended[early].code, city.ended[late].finish_reason) == ("deadline_exceeded", "length")


def test_tenants_above_their_share_of_memory_make_room_first() -> None:
    city = City(room=4)
    for adapter in ("a1", "a2", "a3"):
        city.ask("a", 4, 1, adapter=adapter)
        city.run_out()
    city.ask("b", 4, 1, adapter="b1")
    city.run_out()
    city.residency.want(AdapterRef.of("b1", ""))
    for adapter in ("a1", "a2", "a3"):  # used later than b's
        city.ask("a", 4, 1, adapter=adapter)
        city.run_out()
    city.ask("c", 4, 1, adapter="c1")
    city.run_out()
    assert "b1" in city.residency.resident
    assert len(city.residency.resident) == 4
