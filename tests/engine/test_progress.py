"""Whoever is admitted gets to its end in a bounded number of steps, whatever other tenants ask for, and when."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.city import BLOCK, City
from livery.engine.sequence import TURN

BLOCKS, RUNNING = 64, 4


class Habit(NamedTuple):
    """How a tenant asks: prompts and answers of up to so many tokens, and when."""

    prompt: int
    answer: int
    weight: float
    when: str  # "always", or "late": when the long prompt is nearly read and takes the blocks
    often: float  # how likely in a step
    waiting: int  # at most


HABITS = st.builds(
    Habit,
    prompt=st.sampled_from([1, 8, 24, 100]),
    answer=st.sampled_from([1, 4, 40]),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
    when=st.sampled_from(["always", "late"]),
    often=st.sampled_from([0.05, 0.5, 1.0]),
    waiting=st.integers(1, 3),
)


class Crowd:
    """Tenants that ask by their habits, beside one whose long prompt takes most of the blocks."""

    def __init__(self, city: City, habits: list[Habit], seed: int) -> None:
        self.city, self.rng = city, random.Random(seed)
        self.habits = dict(zip("bcde", habits, strict=False))

    def ask(self, long: str = "") -> None:
        for tenant, habit in self.habits.items():
            waits = self.city.waiting(tenant) >= habit.waiting
            if not waits and self.rng.random() < habit.often and self._is_time(habit, long):
                prompt, answer = self.rng.randint(1, habit.prompt), self.rng.randint(1, habit.answer)
                self.city.ask(tenant, prompt, answer, weight=habit.weight)

    def _is_time(self, habit: Habit, long: str) -> bool:
        return habit.when == "always" or (reading(self.city, long) and self.city.pool.num_free * BLOCK < habit.prompt)


def reading(city: City, name: str) -> bool:
    """Whether a prompt is being read."""
    return any(sequence.request_id == name for sequence in city.scheduler.roster.reading())


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("others", ["b", "bc", "bcde"])
def test_a_prompt_that_is_nearly_read_is_thrown_out_once_at_most(others: str, cache: bool) -> None:
    """Short requests of others come whenever it has taken nearly all blocks."""
    city = City(blocks=BLOCKS, running=RUNNING, tokens=8, cache=cache)
    prompt = BLOCKS * BLOCK - 8
    long, steps = city.ask("a", prompt, 4), 0
    while long not in city.ended:
        tenant = others[steps % len(others)]
        if reading(city, long) and city.pool.num_free <= 8 and not city.waiting(tenant):
            city.ask(tenant, (city.pool.num_free + 1) * BLOCK, 1)
        city.step()
        steps += 1
    assert city.ended[long].finish_reason == "length"
    assert prompt < city.computed[long] <= 2 * (prompt + 4)


@given(habits=st.lists(HABITS, min_size=1, max_size=4), seed=st.integers(0, 2**32), cache=st.booleans())
@settings(max_examples=60, deadline=None)
def test_whoever_is_admitted_ends_in_time(habits: list[Habit], seed: int, cache: bool) -> None:
    city = City(blocks=BLOCKS, running=RUNNING, tokens=16, cache=cache)
    crowd = Crowd(city, habits, seed)
    for _ in range(seed % 60):
        crowd.ask()
        city.step(check=False)
    prompt, answer = BLOCKS * BLOCK - 8 - seed % 100, 1 + seed % 8
    long, begun, steps = city.ask("a", prompt, answer), False, 0
    # A turn is one reading that is lost and one that is kept, each beside all others' in every second step or so, and
    # behind what was admitted before it.
    tenants, others = len(habits) + 1, max(habit.prompt + habit.answer for habit in habits)
    most = 2 * math.ceil(answer / TURN) * (2 * tenants * math.ceil(prompt / (16 - RUNNING)) + RUNNING * others)
    while long not in city.ended:
        crowd.ask(long)
        city.step(check=steps % 20 == 0)
        begun = begun or city.computed[long] > 0
        steps += begun
        assert steps <= most, f"not at its end {most} steps after it was admitted"
    assert city.ended[long].finish_reason == "length"
