"""The waiting room: its bounds, everybody's share of it, and what is told to those who don't get in."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from livery.refusals import Overloaded
from livery.tenancy import OverShare, Room
from livery.tenancy.room import LONGEST_WAIT_S, Place, Space

MOST, TOKENS = 20, 1000
WEIGHTS = {"light": 1.0, "heavy": 3.0, "other": 1.0}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Visited(RuleBasedStateMachine):
    """Tenants come, count, begin and leave in any order."""

    places = Bundle("places")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.room = Room(MOST, TOKENS, self.clock)
        self.inside: dict[Place, list[object]] = {}  # tenant, sequences and tokens that wait, as they count

    def held(self, tenant: str | None, which: int) -> int:
        return sum(int(str(one[which])) for one in self.inside.values() if tenant in (None, one[0]))

    @rule(
        target=places,
        tenant=st.sampled_from(sorted(WEIGHTS)),
        sequences=st.integers(1, 30),
        tokens=st.integers(0, 2500),
    )
    def come(self, tenant: str, sequences: int, tokens: int) -> Place | None:
        counted = min(sequences, MOST // 2), min(tokens, TOKENS // 2)
        totals = self.held(None, 1) + counted[0], self.held(None, 2) + counted[1]
        try:
            place = self.room.enter(tenant, WEIGHTS[tenant], sequences, tokens)
        except Overloaded as refused:
            assert totals[0] > MOST or (counted[1] and totals[1] > TOKENS)
            assert 1 <= refused.retry_after <= LONGEST_WAIT_S
            return None
        except OverShare as refused:
            assert self.held(tenant, 1), "who holds nothing is let in"
            assert 2 * totals[0] > MOST or 2 * totals[1] > TOKENS
            assert 1 <= refused.retry_after <= LONGEST_WAIT_S
            return None
        present = {str(one[0]) for one in self.inside.values()} | {tenant}
        share = WEIGHTS[tenant] / (sum(WEIGHTS[one] for one in present) + 0.125)
        for which, most in ((1, MOST), (2, TOKENS)):
            own = self.held(tenant, which)
            total = totals[which - 1]
            assert not own or not counted[which - 1] or 2 * total <= most or own + counted[which - 1] <= share * most
        self.inside[place] = [tenant, *counted, tokens]
        return place

    @rule(place=places, tokens=st.integers(0, 2500))
    def count(self, place: Place | None, tokens: int) -> None:
        if place is None or place not in self.inside:
            return
        try:
            place.resize(tokens)
        except (Overloaded, OverShare):
            return
        self.inside[place][2:] = [min(tokens, TOKENS // 2), tokens]

    @rule(place=places, share=st.floats(0, 1))
    def begin(self, place: Place | None, share: float) -> None:
        if place is None or place not in self.inside:
            return
        tokens = int(int(str(self.inside[place][3])) * share)
        place.begun(tokens)
        left = int(str(self.inside[place][3])) - tokens
        self.inside[place][2:] = [min(left, TOKENS // 2), left]

    @rule(place=consumes(places), seconds=st.floats(0, 5))
    def leave(self, place: Place | None, seconds: float) -> None:
        if place is not None:
            place.leave()
            place.leave()
            del self.inside[place]
        self.clock.now += seconds

    @invariant()
    def the_books_are_right_and_no_bound_is_passed(self) -> None:
        assert self.room.sequences.held == self.held(None, 1) <= MOST
        assert self.room.tokens.held == self.held(None, 2) <= TOKENS
        assert len(self.room) == len({one[0] for one in self.inside.values()})


TestVisited = Visited.TestCase


def fill(room: Room, tenant: str, weight: float = 1.0, *, tokens: int = 0, alone: bool = False) -> list[Place]:
    """As many requests as a tenant gets in."""
    found = []
    while True:
        try:
            found.append(room.enter(tenant, weight, 1, tokens, alone=alone))
        except (Overloaded, OverShare):
            return found


def test_a_flood_of_one_tenant_leaves_room_for_the_next() -> None:
    room = Room(900, 10_000)
    flood = fill(room, "flood")
    assert len(flood) == 800
    calm = fill(room, "calm")
    assert len(calm) == 88, "eight ninths of what the flood has left"
    with pytest.raises(OverShare, match=r"88 sequences of tenant 'calm'.* its share is 88"):
        room.enter("calm", 1.0, 1, 10)
    assert [len(fill(room, name)) for name in ("third", "fourth", "fifth")] == [10, 1, 1], "there is always a next one"
    with pytest.raises(Overloaded, match="900 sequences"):
        room.enter("late", 1.0, 1, 10)
    for place in flood[:400]:
        place.leave()
    with pytest.raises(OverShare, match=r"400 sequences of tenant 'flood'.* its share is 175"):
        room.enter("flood", 1.0, 1, 10)
    assert len(fill(room, "third")) > 100


def test_a_flood_of_long_prompts_leaves_room_too() -> None:
    room = Room(1024, 9000)
    assert len(fill(room, "flood", tokens=100)) == 80
    room.enter("calm", 1.0, 1, 1000)


def test_a_tenant_that_nobody_can_come_beside_has_all() -> None:
    room = Room(16, 100)
    assert len(fill(room, "default", alone=True)) == 16


def test_weights_share_a_busy_room() -> None:
    room = Room(1000, 1)
    got = {"light": 0, "heavy": 0}
    for _ in range(2000):
        for tenant in got:
            with suppress(OverShare):
                room.enter(tenant, WEIGHTS[tenant], 1, 0)
                got[tenant] += 1
    assert got == {
        "light": 250,
        "heavy": 720,
    }  # half the room for who comes first, then 3 in 3.125 of what light leaves


def test_one_large_request_shuts_nobody_out() -> None:
    room = Room(64, 1000)
    room.enter("large", 1.0, 500, 1_000_000)
    for _ in range(20):
        room.enter("small", 1.0, 1, 20)


def test_a_wait_is_told_by_what_went_lately() -> None:
    clock = Clock()
    room = Room(1000, 1000, clock)
    for _ in range(300):  # a sequence ten times a second
        clock.now += 0.1
        room.enter("a", 1.0, 1, 0).leave()
    places = fill(room, "a", alone=True)
    waits = set()
    for _ in range(100):
        with pytest.raises(Overloaded) as refused:
            room.enter("b", 1.0, 100, 0)
        waits.add(refused.value.retry_after)
    assert waits <= set(range(10, 17)), "a hundred places take ten seconds, and up to half as long again"
    assert len(waits) > 1, "not all come back at once"
    for place in places:
        place.leave()
    clock.now += 100
    fill(room, "a", alone=True)
    with pytest.raises(Overloaded) as stuck:
        room.enter("b", 1.0, 1, 0)
    assert stuck.value.retry_after == LONGEST_WAIT_S


def test_a_space_for_one_thing_is_shared_alike() -> None:
    space = Space("bytes of request bodies", 9000)
    flood = [space.enter("flood", 1.0, 1000) for _ in range(8)]
    with pytest.raises(OverShare, match=r"8000 bytes of request bodies of tenant 'flood'.* its share is 8000"):
        space.enter("flood", 1.0, 1)
    calm = space.enter("calm", 1.0, 900)
    with pytest.raises(Overloaded, match="8900 bytes of request bodies"):
        space.enter("late", 1.0, 101)
    calm.hold(100)
    late = space.enter("late", 1.0, 900)
    for part in (*flood, calm, late):
        part.leave()
        part.leave()
        part.hold(50)
    assert (space.stock.held, len(space)) == (0, 0)
    assert space.enter("flood", 1.0, 20_000, alone=True) and space.stock.held == 4500
