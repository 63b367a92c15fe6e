"""What requests did lately, of all tenants and of each: apart from each other, and bounded."""

from __future__ import annotations

from livery import activity
from livery.activity import BASE, RATE_S, Activity, Finished, Work
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
