"""What requests did lately, of all tenants and of each: apart from each other, and bounded."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery import activity
from livery.activity import BASE, RATE_S, WINDOW_S, Activity, Finished, Throughput, Work
from livery.overview import throughput

DONE = Work("stop", 0.1, 9, 40)


def request(account: str, number: int) -> Finished:
    return Finished(
        f"req_{number}", "/v1/completions", "", "", 200, "stop", 1, 1, None, 0.1, account, "k", float(number)
    )


def test_each_tenant_sees_what_it_did_and_the_operator_what_all_did() -> None:
    found = Activity()
    for account, times in (("acme", 1), ("zeta", 2)):
        for _ in range(times):
            found.finished(account, "acme/sql", DONE, 5.0)
    found.finished("zeta", None, Work("error", None, 3, 0, "what went wrong"), 6.0)
    of = {
        who: {name: done.requests for name in ("acme/sql", BASE) if (done := found.of(who).adapter(name))}
        for who in ("acme", "zeta", "nobody", None)
    }
    assert of == {
        "acme": {"acme/sql": 1},
        "zeta": {"acme/sql": 2, BASE: 1},
        "nobody": {},
        None: {"acme/sql": 3, BASE: 1},
    }
    failed = found.of("zeta").adapter(BASE)
    assert failed is not None
    assert (failed.errors, failed.error, failed.error_at) == (1, "what went wrong", 6.0)


def test_tokens_a_second_are_those_of_whoever_asks() -> None:
    found = Activity()
    began = found.of(None).throughput._second
    for account, tokens in (("acme", 3), ("zeta", 5)):
        found.tokens(account, began + 0.5, began + 0.5, tokens)
        found.finished(account, None, Work("stop", None, 10 * tokens, tokens), began + 0.5)
    sums = {
        who: [sum(one) for one in found.of(who).throughput.by_second(began + 1.5)] for who in ("acme", "zeta", None)
    }
    assert sums == {"acme": [3, 30], "zeta": [5, 50], None: [8, 80]}


def test_a_rate_is_of_the_last_complete_seconds() -> None:
    found = Activity()
    began = found.of(None).throughput._second
    found.tokens("acme", began + 0.5, began + 0.5, 30)
    found.finished("acme", None, Work("stop", None, 20, 30), began + 0.5)
    lately = throughput(found.of(None).told(began + RATE_S + 0.5, {}))
    assert (lately["generated_per_s"], lately["prompt_per_s"]) == (30 / RATE_S, 20 / RATE_S)
    later = throughput(found.of(None).told(began + RATE_S + 1.5, {}))
    assert (later["generated_per_s"], later["prompt_per_s"]) == (0, 0)
    assert (sum(later["generated_by_second"]), sum(later["prompt_by_second"])) == (30, 20)


STRETCHES = st.tuples(st.floats(100, 159), st.floats(0, 30), st.integers(1, 1000), st.integers(0, 1000))


@given(st.lists(STRETCHES, min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_what_several_processes_tell_in_any_order_keeps_its_sum(
    told: list[tuple[float, float, int, int]], chance: random.Random
) -> None:
    ordered, shuffled = Throughput(100.0), Throughput(100.0)
    events = [(max(100.0, now - took), now, generated, prompt) for now, took, generated, prompt in told]
    for event in sorted(events, key=lambda event: event[1]):
        ordered.add(*event)
    chance.shuffle(events)
    for event in events:
        shuffled.add(*event)
    end = math.floor(max(now for _, now, _, _ in events)) + 1
    for one in (ordered, shuffled):
        one.by_second(end)
        assert min(one._generated) >= 0
        assert (sum(one._generated), sum(one._prompt)) == pytest.approx(
            (sum(event[2] for event in events), sum(event[3] for event in events))
        )
    assert list(shuffled._generated) == pytest.approx(list(ordered._generated), abs=1e-6)
    assert shuffled._prompt == ordered._prompt


def test_what_comes_when_nobody_asks_for_it_any_more_is_passed_over() -> None:
    found = Throughput(100.0)
    found.add(200.0, 200.5, 4, 4)
    found.add(100.0, 200.5 - WINDOW_S - 1, 10, 10)
    found.add(201.2 - WINDOW_S, 201.5 - WINDOW_S, 6, 6)  # in the oldest second that is told
    generated, prompt = found.by_second(201.0)
    assert (generated[0], generated[-1], prompt[0], prompt[-1]) == (6, 4, 6, 4)
    assert (sum(generated), sum(prompt)) == (10, 10)


def test_what_is_remembered_is_bounded_for_one_and_for_all_and_nobody_makes_another_forgotten() -> None:
    found = Activity()
    found.finished("quiet", "its", DONE, 1.0)
    found.note(request("quiet", 0))
    for number in range(activity.MAX_ADAPTERS + 5):
        found.finished("busy", f"a{number}", DONE, 1.0)
        found.note(request("busy", number))
    assert found.of("busy").adapter("a4") is None, "those used last are kept"
    assert found.of("busy").adapter("a5") is not None
    assert len(found.of("busy").recent()) == len(found.of(None).recent()) == activity.MAX_REQUESTS
    assert found.of("quiet").adapter("its") is not None
    assert [one.id for one in found.of("quiet").recent()] == ["req_0"]


def test_tenants_share_what_is_remembered_in_equal_parts() -> None:
    found = Activity()
    for number in range(activity.MAX_ADAPTERS):
        found.finished("first", f"a{number}", DONE, 1.0)
        found.note(request("first", number))
    others = activity.ALL_ADAPTERS // 100
    for number in range(others - 1):
        found.tokens(f"t{number}", 1.0, 1.0, 1)
    kept = [number for number in range(activity.MAX_ADAPTERS) if found.of("first").adapter(f"a{number}")]
    assert kept == list(range(activity.MAX_ADAPTERS - 100, activity.MAX_ADAPTERS))
    newest = [one.id for one in found.of("first").recent()]
    assert newest == [f"req_{activity.MAX_ADAPTERS - 1 - back}" for back in range(activity.ALL_REQUESTS // others)]


def test_of_more_tenants_than_are_remembered_those_seen_last_are() -> None:
    found = Activity()
    for number in range(activity.MAX_TENANTS):
        found.finished(f"t{number}", "a", DONE, 1.0)
    found.tokens("t0", 1.0, 1.0, 1)
    found.finished("late", "a", DONE, 1.0)
    assert [who for who in ("t0", "t1", "t2", "late") if found.of(who).adapter("a")] == ["t0", "t2", "late"]
