"""The prefix cache as the scheduler uses it, over a simulated device that notices every wrong block."""

from __future__ import annotations

import pytest

from engine.simulated import BLOCK, SICK, Simulation, answer, request
from livery.engine.base import TokenDelta

SYSTEM = [10, 11, 12, 13, 14, 15, 16, 17]  # two blocks
SIZES = {"a": 10, "b": 10}


def loaded(**options: int) -> Simulation:
    """A simulation in which the adapters are in memory."""
    house = Simulation(**options)
    for name in SIZES:
        house.add(request(f"warm-{name}", [99], 1, name))
    while house.scheduler.has_work:
        house.step()
        house.load(SIZES)
    return house


def test_an_equal_beginning_is_computed_once() -> None:
    house = Simulation()
    house.run(request("first", [*SYSTEM, 20, 21]))
    house.run(request("second", [*SYSTEM, 30, 31]))
    assert (house.cached["first"], house.cached["second"]) == (0, 8)
    assert house.computed["first"] - house.computed["second"] == 8
    assert (house.scheduler.prefix.queries, house.scheduler.prefix.hits) == (20, 8)


def test_off_means_off() -> None:
    house = Simulation(cache=False)
    for name in ("first", "second"):
        house.run(request(name, [*SYSTEM, 20]))
    assert house.cached["second"] == house.scheduler.prefix.queries == house.pool.num_cached == 0
    assert house.computed["first"] == house.computed["second"]


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1])
def test_a_prompt_known_as_a_whole_still_computes_its_last_token(length: int) -> None:
    house = Simulation()
    prompt = SYSTEM[:length] + [9] * (length - len(SYSTEM))
    house.run(request("first", prompt))
    house.run(request("second", prompt))
    assert house.cached["second"] == (length - 1) // BLOCK * BLOCK
    assert house.tokens["second"] == house.tokens["first"]


def test_equal_blocks_are_held_once() -> None:
    """A prompt of whole blocks computes its last one again, and then goes on with the one that was there."""
    house = Simulation()
    house.run(request("first", SYSTEM, 2))
    cached = house.pool.num_cached
    house.add(request("second", SYSTEM, 8))
    house.add(request("third", SYSTEM, 8))
    house.step()
    house.step()
    tables = [part.block_table for part in house.plans[-1].slices]
    assert len(tables) == 2
    assert tables[0][:2] == tables[1][:2]
    assert house.pool.num_cached == cached
    house.run()


def test_the_next_turn_of_a_chat_finds_the_whole_history() -> None:
    house = Simulation()
    first = request("turn1", [*SYSTEM, 20], 12)
    house.run(first)
    history = [*SYSTEM, 20, *answer(first)]  # 21 tokens; the newest was never computed
    house.run(request("turn2", [*history, 40, 41]))
    assert house.cached["turn2"] == len(history) // BLOCK * BLOCK == 20


def test_nothing_is_shared_across_tenants_salts_adapters_and_starts() -> None:
    house = loaded()
    prompt = [*SYSTEM, 20]
    kinds: list[dict[str, object]] = [
        {},
        {"tenant": "u"},
        {"salt": "s"},
        {"tenant": "s"},
        {"adapter": "a"},
        {"adapter": "b"},
        {"adapter": "a", "salt": "s"},
        {"adapter": "a", "tenant": "u"},
        {"adapter": "a", "start": 1},
        {"adapter": "a", "start": 2},
    ]
    for index, kind in enumerate(kinds):
        house.run(request(f"first{index}", prompt, **kind))  # type: ignore[arg-type]
        assert house.cached[f"first{index}"] == 0, kind
    for index, kind in enumerate(kinds):
        house.run(request(f"again{index}", prompt, **kind))  # type: ignore[arg-type]
        assert house.cached[f"again{index}"] == 8, kind


@pytest.mark.parametrize(("start", "shared"), [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (9, 8), (40, 8)])
def test_what_an_activated_adapter_leaves_to_the_base_is_shared_with_it(start: int, shared: int) -> None:
    prompt = [*SYSTEM, 20, 21]
    for first, second in (({}, {"adapter": "a"}), ({"adapter": "a"}, {}), ({"adapter": "b"}, {"adapter": "a"})):
        house = loaded()
        house.run(request("first", prompt, start=start if first else 0, **first))
        house.run(request("second", prompt, start=start if second else 0, **second))
        assert house.cached["second"] == shared


def test_two_at_the_same_time_compute_a_new_beginning_once() -> None:
    house = Simulation(tokens=32)
    house.run(request("first", [*SYSTEM, 20]), request("second", [*SYSTEM, 30]), request("third", [*SYSTEM, 20]))
    assert [house.cached[name] for name in ("first", "second", "third")] == [0, 8, 8]
    assert [part.request_id for part in house.plans[0].slices] == ["first"]
    assert [part.request_id for part in house.plans[1].slices] == ["first", "second", "third"]


def test_waiting_for_a_beginning_holds_nobody_else_up() -> None:
    house = Simulation(tokens=32)
    house.add(request("first", [*SYSTEM, 20]))
    house.add(request("second", [*SYSTEM, 30]))
    house.add(request("other", [40, 41]))
    house.step()
    assert [part.request_id for part in house.plans[0].slices] == ["first", "other"]


def test_what_saves_less_than_a_step_is_not_waited_for() -> None:
    house = Simulation(tokens=256, blocks=64)  # a step is worth 32 tokens
    short, long = list(range(100, 131)), list(range(100, 134))
    house.run(request("short1", [*short, 5]), request("short2", [*short, 6]))
    assert house.cached["short2"] == 0
    house = Simulation(tokens=256, blocks=64)
    house.run(request("long1", [*long, 5]), request("long2", [*long, 6]))
    assert house.cached["long2"] == 32


@pytest.mark.parametrize("end", ["abort", "failure"])
def test_whoever_waits_for_one_that_never_finishes_computes_it_himself(end: str) -> None:
    house = Simulation(tokens=4)
    name = "gone" if end == "abort" else f"{SICK}gone"
    house.add(request(name, [*SYSTEM, 20]))
    house.add(request("second", [*SYSTEM, 30]))
    house.step()
    assert len(house.plans[0].slices) == 1
    if end == "abort":
        assert house.scheduler.abort(name)
        house.scheduler.check_invariants()
    house.run()
    assert house.finished == ({} if end == "abort" else {name: "error"}) | {"second": "length"}
    assert house.cached["second"] == 0
    assert house.tokens["second"] == answer(house.requests["second"])


def test_blocks_of_a_failed_sequence_are_never_found() -> None:
    """Nor those it has read: what made it fail may be in there."""
    house = Simulation()
    house.run(request(f"{SICK}one", [*SYSTEM, 20]))
    assert house.pool.num_cached == 0
    house.run(request("good", [*SYSTEM, 20]))
    house.run(request(f"{SICK}two", [*SYSTEM, 30, 31]))
    assert house.finished[f"{SICK}two"] == "error"
    house.run(request("again", [*SYSTEM, 20]))
    assert house.cached["again"] == 0


def test_an_abort_while_the_prompt_is_read_leaves_nothing_half_done() -> None:
    house = Simulation(tokens=4)
    house.add(request("gone", [*SYSTEM, 20, 21]))
    house.step()
    house.step()
    last = house.scheduler.abort("gone")
    assert last is not None and (last.finish_reason, last.prompt_tokens, last.cached_tokens) == ("abort", 8, 0)
    assert house.pool.num_cached == 0, "no token was sampled yet, so nobody knows whether these are numbers"
    house.scheduler.check_invariants()
    assert house.pool.num_free == house.pool.num_blocks
    house.run(request("next", [*SYSTEM, 20, 21]))


def test_what_is_dropped_says_how_much_of_its_prompt_was_computed_or_found() -> None:
    house = Simulation(tokens=4, running=1)
    house.run(request("first", [*SYSTEM, 20]))
    for name in ("found", "queued"):
        house.add(request(name, [*SYSTEM, *range(20, 30)]))
    assert house.step() == house.step() == []
    found, queued = house.scheduler.abort("found"), house.scheduler.abort("queued")
    assert found == TokenDelta("found", [], "abort", cached_tokens=len(SYSTEM), prompt_tokens=len(SYSTEM) + 8)
    assert queued == TokenDelta("queued", [], "abort")
    assert house.scheduler.abort("found") is None


def test_what_runs_out_of_time_says_it_too() -> None:
    house = Simulation(tokens=4, cache=False)
    house.add(request("late", [*SYSTEM, *range(20, 30)], deadline=2))
    told = [delta for _ in range(3) for delta in house.step()]
    assert [(delta.code, delta.prompt_tokens) for delta in told] == [("deadline_exceeded", 8)]


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    house = Simulation(blocks=7, tokens=32, running=2)
    old, young = request("old", [*SYSTEM, 20], 16), request("young", list(range(30, 36)), 12)
    house.run(old, young)
    assert house.scheduler.roster.preemptions > 0
    lost = house.computed["young"] - (6 + 12 - 1)
    assert 0 < lost < 6 + 4, "it computed all of it again"
    assert house.cached["young"] == 0, "what a sequence finds of its own isn't a saving"


def test_the_longest_unused_goes_first_and_the_tail_before_the_head() -> None:
    house = Simulation(blocks=8)
    first, second = [*range(10, 22)], [*range(30, 42)]  # three blocks each
    house.run(request("first", [*first, 1], 1))
    house.run(request("second", [*second, 1], 1))
    assert house.pool.num_cached == 6
    house.run(request("large", [*range(50, 65)], 1))  # four blocks: two blank ones and the tail of the first
    assert house.pool.evictions == 2
    house.run(request("second again", [*second, 2], 1))
    assert house.cached["second again"] == 12
    house = Simulation(blocks=8)
    house.run(request("first", [*first, 1], 1), request("second", [*second, 1], 1))
    house.run(request("large", [*range(50, 65)], 1))
    house.run(request("first again", [*first, 2], 1))
    assert house.cached["first again"] == 4, "the head is of use, and so it is there"


def test_cached_blocks_are_room_like_any_other() -> None:
    """A pool full of memories takes the longest request that it could ever take."""
    house = Simulation(blocks=8, tokens=8)
    for number in range(6):
        house.run(request(f"r{number}", [number + 10] * 9, 3))
    assert house.pool.num_free == 8
    house.run(request("longest", [*range(100, 128)], 4))
    assert house.finished["longest"] == "length"


def test_what_is_found_is_not_counted_as_free() -> None:
    """The blocks a request shares are idle until it holds them; its others must find room beside those."""
    house = Simulation(blocks=6, tokens=32)
    house.run(request("first", [*SYSTEM, 20], 1))
    house.add(request("busy", [*range(30, 42), 50], 3))  # four of six
    house.step()
    house.add(request("second", [*SYSTEM, *range(60, 65)], 1))  # two found, two more needed
    house.step()
    assert house.scheduler.num_running == 1
    house.run()
    assert house.finished["second"] == "length"


def test_nobody_waits_for_what_a_late_mask_holds_up() -> None:
    """The first of a new grammar has read the common beginning and waits for its compiler: others go on without it."""
    house = Simulation(64, tokens=64)
    beginning = list(range(10, 30))
    house.add(request("held", [*beginning, 40]), mask_after=50)
    house.add(request("free", [*beginning, 50]))
    for _ in range(8):
        house.step()
    assert house.finished == {"free": "length"}
    house.run()
    assert house.tokens["held"] == answer(house.requests["held"])


def test_nobody_waits_for_a_prompt_of_which_few_rows_are_scored_in_a_step() -> None:
    house = Simulation(64, tokens=64, scored_rows=2)
    document = list(range(10, 60))
    house.add(request("scored", [*document, 70], scored=True))
    house.add(request("free", [*document[:40], 80, 81]))
    for _ in range(5):
        house.step()
    assert house.finished == {"free": "length"}
    house.run()
    assert house.scores["scored"] == [*document[1:], 70], "each once, in order"
