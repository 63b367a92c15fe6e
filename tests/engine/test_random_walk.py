"""Walks of two thousand random operations on scheduler, residency and prefix cache, looked at after each.

The device is simulated and remembers whose every position is, so a walk fails where a block is shared wrongly, written
while somebody shares it, or lost, and where an answer differs from that of the same request alone.

LIVERY_WALKS sets how many hundreds of operations there are in all.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.simulated import SICK, SICKENS, Simulation, answer, request
from livery.engine.base import GenerationRequest
from livery.engine.codes import ADAPTER_TOO_LARGE, DEADLINE_EXCEEDED
from livery.engine.roster import MAX_SKIPS
from sizes import wished

OPERATIONS = 2000
WALKS = wished("LIVERY_WALKS", 240) * 100 // OPERATIONS
ADAPTERS = [f"d{number}" for number in range(6)]
WEIGHTS = {"t": 1.0, "u": 3.0, "v": 0.5}
SYSTEMS = [[10] * 9, [10] * 5 + [11] * 12, [12] * 16]  # beginnings that many requests have in common


def pieces(rng: random.Random, pages: int) -> list[int]:
    """So many pages as pieces of at least one."""
    cuts = sorted(rng.sample(range(1, pages), rng.randrange(min(3, pages))))
    return [end - start for start, end in pairwise([0, *cuts, pages])]


class Walk:
    """One random life of a server, reproducible from its seed."""

    def __init__(self, seed: int, house: Simulation) -> None:
        self.rng = random.Random(seed)
        self.house = house
        self.sizes = {name: pieces(self.rng, self.rng.randrange(1, 11)) for name in ADAPTERS}
        self.rooms = {tenant: self.rng.choice([0, self.rng.randrange(5, 20)]) for tenant in WEIGHTS}
        self.alive: dict[str, GenerationRequest] = {}
        self.aborted: set[str] = set()

    def operate(self, number: int) -> None:
        action = self.rng.random()
        if action < 0.2:
            self._ask(number)
        elif action < 0.25 and self.alive:
            self._abort(self.rng.choice(sorted(self.alive)))
        elif action < 0.4:
            self.house.load(self.sizes)
        elif action < 0.43:
            self.house.residency.retire(self.rng.choice(ADAPTERS))
            self.house.residency.take_evictions()
        elif action < 0.45:
            self.house.residency.keep(self.rng.sample(ADAPTERS, self.rng.randrange(3)))
        else:
            self._step()
        self.house.scheduler.check_invariants()

    def finish(self) -> None:
        """Let everything run out; nothing may be stuck."""
        for _ in range(20 * OPERATIONS):
            if not self.house.scheduler.has_work:
                return
            self._step()
            self.house.load(self.sizes)
        raise AssertionError(f"still waiting: {sorted(self.alive)}")

    def _ask(self, number: int) -> None:
        rng, longest = self.rng, self.house.pool.num_blocks * self.house.pool.block_size
        prompt = rng.choice(SYSTEMS)[: rng.randrange(1, 17)] + [rng.randrange(20, 23) for _ in range(rng.randrange(6))]
        earlier = [*self.house.requests.values()][-8:]
        if earlier and rng.random() < 0.3:  # the next turn of a chat
            previous = rng.choice(earlier)
            prompt = [*previous.prompt_token_ids, *self.house.tokens[previous.request_id], 24]
        prompt = prompt[: longest - 1]
        name = f"{rng.choice([SICK, SICKENS, *[''] * 18])}r{number}"
        asked = request(
            name,
            prompt,
            rng.choice([1, 4, 8, 30]),
            rng.choice([None, *ADAPTERS]),
            start=rng.choice([0, 0, 0, 4, 7, 8]),
            tenant=(tenant := rng.choice("tuv")),
            salt=rng.choice(["", "", "s"]),
            weight=WEIGHTS[tenant],
            room=self.rooms[tenant],
            deadline=rng.choice([0, 0, 0, 0, rng.randrange(1, 200)]),
            scored=rng.random() < 0.1,
        )
        self.house.add(asked, rng.choice([None] * 5 + [rng.randrange(30)]))
        self.alive[name] = asked

    def _abort(self, name: str) -> None:
        assert self.house.scheduler.abort(name)
        del self.alive[name]
        self.aborted.add(name)

    def _step(self) -> None:
        house = self.house
        turns = house.scheduler.turns
        deltas = house.step()
        waiting = house.scheduler.roster.waiting
        # Where room is made for one, or one passed over too often waits for it, the next load brings it.
        making_room = house.scheduler.turns > turns or any(seq.skips > MAX_SKIPS for seq in waiting)
        idle = not house.plans[-1].slices and not making_room
        assert not (idle and self._could_begin()), "idle, and something could run"
        for sequence in [*waiting, *house.scheduler.roster.running]:
            assert sequence.expires > house.now - 1, "its time is up, and it is still there"
        for delta in deltas:
            if (
                delta.finish_reason == "length"
                and (asked := self.alive[delta.request_id]).sampling.prompt_logprobs == 0
            ):
                assert house.scores[delta.request_id] == asked.prompt_token_ids[1:], "scored twice, or not"
            if delta.finish_reason:
                asked = self.alive.pop(delta.request_id)
                tokens = self.house.tokens[delta.request_id]
                assert tokens == answer(asked)[: len(tokens)], "not what it gets alone"
                if delta.code == DEADLINE_EXCEEDED:
                    assert asked.deadline_s
                    continue
                if delta.code == ADAPTER_TOO_LARGE:
                    assert asked.adapter and sum(self.sizes[asked.adapter.digest]) > self.rooms[asked.tenant] > 0
                    continue
                healthy = not asked.request_id.startswith((SICK, SICKENS))
                assert delta.finish_reason == "length" if healthy else len(tokens) <= 3

    def _could_begin(self) -> bool:
        """Whether the first that is ready has room, beside those that wait for their masks."""
        roster, pool = self.house.scheduler.roster, self.house.pool
        ready = next(filter(roster.is_ready, roster.waiting), None)
        if ready is None or roster.is_full:
            return False
        return pool.blocks_for(ready.num_tokens) + roster.num_lacking <= pool.num_free


@given(
    seed=st.integers(0, 2**32),
    blocks=st.integers(6, 40),
    running=st.integers(1, 6),
    tokens=st.integers(6, 40),
    budget=st.integers(10, 40),
    speculate=st.sampled_from([0, 0, 3]),
    one_memory=st.booleans(),
    scored_rows=st.sampled_from([1, 3, 100]),
)
@settings(max_examples=WALKS, deadline=None)
def nothing_is_lost_mixed_up_or_stuck(
    walked: Counter[str],
    seed: int,
    blocks: int,
    running: int,
    tokens: int,
    budget: int,
    speculate: int,
    one_memory: bool,
    scored_rows: int,
) -> None:
    house = Simulation(
        blocks,
        running=running,
        tokens=tokens,
        budget=budget,
        speculate=speculate,
        one_memory=one_memory,
        scored_rows=scored_rows,
    )
    walk = Walk(seed, house)
    for number in range(OPERATIONS):
        walk.operate(number)
    walk.finish()
    assert set(house.finished) | walk.aborted == set(house.requests)
    assert not set(house.finished) & walk.aborted
    assert house.pool.num_free == blocks
    assert not house.residency.pinned
    assert house.scheduler.prefix.hits > 0
    walked.update(walks=1, operations=OPERATIONS, requests=len(house.requests), steps=len(house.plans))


def test_nothing_is_lost_mixed_up_or_stuck() -> None:
    walked = Counter[str]()
    nothing_is_lost_mixed_up_or_stuck(walked=walked)
    print(f"{dict(walked)}; the seed is Hypothesis's own")
    assert walked["walks"] >= WALKS
