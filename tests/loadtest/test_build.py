"""A workload becomes the same requests every time, and what it says of them holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livery_loadtest.build import build_script, build_warm_up
from livery_loadtest.script import Planned, Script
from livery_loadtest.spec import (
    Azure,
    Between,
    Churn,
    Closed,
    ColdArrivals,
    Conversations,
    Disconnects,
    Distinct,
    Fixed,
    Gamma,
    Hook,
    OfTrace,
    Poisson,
    SharedPrefix,
    SpecInvalid,
    Structured,
    Tenant,
    Trace,
    Weights,
    Workload,
    Zipf,
)

ADAPTERS = [f"adapter-{index}" for index in range(20)]
TENANTS = (Tenant(name="one", key_env="ONE"), Tenant(name="three", key_env="THREE", weight=3))


def made(listed: list[str] = ADAPTERS, repeat: int = 0, **fields: Any) -> Script:
    """2,000 requests of a workload with these fields on a server that lists these adapters."""
    return build_script(Workload(**{"name": "w", "requests": 2000, **fields}), "base", listed, repeat)


def share(script: Script, is_so: Any) -> float:
    return sum(map(is_so, script.requests)) / len(script.requests)


def chats(script: Script) -> list[list[Planned]]:
    """The requests by conversation, each of which stands together."""
    found: list[list[Planned]] = []
    for request in script.requests:
        if request.follows is None:
            found.append([])
        else:
            assert request.follows == found[-1][-1].index
        found[-1].append(request)
    return found


WORKLOADS = st.builds(
    Workload,
    name=st.just("any"),
    seed=st.integers(0, 2**63 - 1),
    endpoint=st.just("chat"),
    arrivals=st.one_of(
        st.just(Closed()),
        st.builds(Poisson, rate=st.floats(1, 100)),
        st.builds(Gamma, rate=st.floats(1, 100), cv=st.floats(0.5, 8)),
    ),
    requests=st.integers(1, 300),
    duration_s=st.just(600.0),
    base_share=st.floats(0, 1),
    popularity=st.sampled_from([Zipf(), Distinct()]),
    prompt=st.sampled_from([Fixed(tokens=10), Azure(high=64)]),
    output=st.builds(Between, low=st.just(1), high=st.integers(1, 50)),
    shared_prefix=st.sampled_from([None, SharedPrefix(tokens=5, share=0.5, groups=3)]),
    tenants=st.sampled_from([(), TENANTS]),
    conversations=st.sampled_from([None, Conversations(turns=Between(low=1, high=6), think_s=1.5)]),
    cold=st.sampled_from([None, ColdArrivals(share=0.2, reserved=4)]),
    churn=st.sampled_from([None, Churn(every_s=10, adapters=2, source="/srv")]),
    structured=st.sampled_from([None, Structured(share=0.5)]),
    disconnects=st.sampled_from([None, Disconnects(share=0.5)]),
)


@given(workload=WORKLOADS, repeat=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_scripts_are_the_same_every_time_and_in_order(workload: Workload, repeat: int) -> None:
    script = build_script(workload, "base", ADAPTERS, repeat)
    assert script == build_script(workload, "base", ADAPTERS, repeat)
    assert len(script.requests) == workload.requests
    assert [request.index for request in script.requests] == list(range(workload.requests))
    times = [request.at for request in script.requests if request.at is not None]
    assert times == sorted(times)
    if isinstance(workload.arrivals, Closed):
        assert not times
    else:
        assert len(times) == sum(request.follows is None for request in script.requests)
    assert len({request.text for request in script.requests}) == workload.requests
    for turns in chats(script):
        assert len({(turn.model, turn.tenant) for turn in turns}) == 1
        assert [turn.pause_s for turn in turns] == [0.0, *[1.5] * (len(turns) - 1)]
        assert not any(turn.cold for turn in turns[1:])
        assert all(turn.leave_after is None for turn in turns[:-1])


@given(workload=WORKLOADS, repeat=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_repeats_differ_in_their_prompts_alone(workload: Workload, repeat: int) -> None:
    workload = msgspec.structs.replace(workload, cold=None)
    first, other = (build_script(workload, "base", ADAPTERS, number) for number in (0, repeat))
    without = [[replace(request, text="") for request in script.requests] for script in (first, other)]
    assert without[0] == without[1] and first.changes == other.changes
    assert not {request.text for request in first.requests} & {request.text for request in other.requests}


def test_another_seed_is_another_run_of_the_same_kind() -> None:
    one, two = (made(arrivals=Poisson(rate=10), seed=seed, popularity=Zipf()) for seed in (1, 2))
    assert one.requests[:3] != two.requests[:3]
    assert one.requests[-1].at == pytest.approx(two.requests[-1].at, rel=0.2)


def test_what_is_added_to_a_workload_leaves_the_rest_as_it_was() -> None:
    plain = made(arrivals=Poisson(rate=10), popularity=Zipf(), prompt=Azure(high=50), endpoint="chat")
    more = made(
        arrivals=Poisson(rate=10),
        popularity=Zipf(),
        prompt=Azure(high=50),
        endpoint="chat",
        tenants=TENANTS,
        structured=Structured(share=0.5),
        disconnects=Disconnects(share=0.5),
    )
    for before, after in zip(plain.requests, more.requests, strict=True):
        assert before == replace(after, tenant=None, json_schema=None, leave_after=None)


def test_shares_and_weights_are_met() -> None:
    script = made(
        requests=20_000,
        endpoint="chat",
        base_share=0.25,
        tenants=TENANTS,
        structured=Structured(share=0.1),
        disconnects=Disconnects(share=0.2, after_events=0),
    )
    assert share(script, lambda request: request.model == "base") == pytest.approx(0.25, abs=0.02)
    assert share(script, lambda request: request.tenant == "three") == pytest.approx(0.75, abs=0.02)
    assert share(script, lambda request: request.json_schema is not None) == pytest.approx(0.1, abs=0.02)
    assert share(script, lambda request: request.leave_after == 0) == pytest.approx(0.2, abs=0.02)
    assert {request.leave_after for request in script.requests} == {None, 0}
    of_both = share(script, lambda request: request.json_schema is not None and request.leave_after == 0)
    assert of_both == pytest.approx(0.02, abs=0.01), "one says nothing of the other"
    by_adapter = Counter(request.model for request in script.requests if request.model != "base")
    assert set(by_adapter) == set(ADAPTERS)


def test_distinct_adapters_take_turns_whatever_goes_to_the_base() -> None:
    script = made(base_share=0.3, popularity=Distinct(), adapters=7)
    named = [request.model for request in script.requests if request.model != "base"]
    assert named == [ADAPTERS[index % 7] for index in range(len(named))]
    assert [request.model for request in made([], base_share=1).requests] == ["base"] * 2000


def test_prefixes_are_shared_within_groups_and_over_repeats() -> None:
    scripts = [
        made(repeat=repeat, prompt=Fixed(tokens=8), shared_prefix=SharedPrefix(tokens=100, share=0.6, groups=3))
        for repeat in (0, 1)
    ]
    groups: dict[str, int] = defaultdict(int)
    for request in (request for script in scripts for request in script.requests):
        words = request.text.split(" ")
        if len(words) > 8:
            assert len(words) == 108
            groups[" ".join(words[:100])] += 1
    assert len(groups) == 3
    assert sum(groups.values()) / 4000 == pytest.approx(0.6, abs=0.05)
    assert all(count / 4000 == pytest.approx(0.2, abs=0.05) for count in groups.values())


def test_a_conversation_begins_with_the_prefix_once() -> None:
    script = made(
        endpoint="chat",
        prompt=Fixed(tokens=8),
        shared_prefix=SharedPrefix(tokens=30),
        conversations=Conversations(turns=Fixed(tokens=3)),
    )
    assert [len(request.text.split(" ")) for request in script.requests[:6]] == [38, 8, 8, 38, 8, 8]


def test_conversations_come_as_arrivals_say_and_end_with_the_run() -> None:
    script = made(
        endpoint="chat",
        arrivals=Poisson(rate=5),
        requests=0,
        duration_s=200,
        conversations=Conversations(turns=Between(low=1, high=5), think_s=3),
        disconnects=Disconnects(share=0.5),
    )
    found = chats(script)
    assert len(found) == pytest.approx(1000, abs=200)
    lengths = Counter(len(turns) for turns in found)
    assert all(lengths[turns] / len(found) == pytest.approx(0.2, abs=0.07) for turns in range(1, 6))
    assert sum(turns[-1].leave_after is not None for turns in found) / len(found) == pytest.approx(0.5, abs=0.08)
    cut = made(endpoint="chat", requests=10, conversations=Conversations(turns=Fixed(tokens=4)))
    assert [len(turns) for turns in chats(cut)] == [4, 4, 2]


def test_another_attempt_at_a_repeat_asks_the_same_with_prompts_of_its_own() -> None:
    workload = Workload(name="w", requests=50, arrivals=Poisson(rate=5), cold=ColdArrivals(share=0.1, reserved=4))
    ways = [(0, 0), (0, 1), (1, 0), (1, 1)]
    scripts = [build_script(workload, "base", ADAPTERS, repeat, attempt) for repeat, attempt in ways]
    texts = {request.text for script in scripts for request in script.requests}
    assert len(texts) == len(scripts) * workload.requests
    for first, again in (scripts[:2], scripts[2:]):
        assert [replace(one, text="") for one in first.requests] == [replace(one, text="") for one in again.requests]


def test_cold_arrivals_name_each_reserved_adapter_once_and_each_repeat_others() -> None:
    scripts = [made(requests=40, repeat=repeat, cold=ColdArrivals(share=0.1, reserved=12)) for repeat in range(3)]
    seen: list[str] = []
    for script in scripts:
        cold = [request.model for request in script.requests if request.cold]
        reserved = [request.model for request in script.requests if request.model in ADAPTERS[8:]]
        assert cold == reserved and 1 <= len(cold) <= 4 * 2
        seen += cold
    assert seen == ADAPTERS[8 : 8 + len(seen)]
    later = made(requests=40, repeat=12, cold=ColdArrivals(share=0.1, reserved=12))
    assert all(request.model in ADAPTERS[:8] and not request.cold for request in later.requests), "none is left"
    used_up = made(cold=ColdArrivals(share=1, reserved=12))
    assert [request.model for request in used_up.requests if request.cold] == ADAPTERS[8:]
    assert all(request.model in ADAPTERS[:8] for request in used_up.requests[12:])


def test_churn_goes_in_turn_over_the_last_that_are_not_reserved() -> None:
    script = made(
        arrivals=Poisson(rate=10),
        requests=0,
        duration_s=60,
        cold=ColdArrivals(share=0.1, reserved=5),
        churn=Churn(every_s=8, adapters=3, source="/srv/adapters/"),
    )
    assert [change.at for change in script.changes] == [8, 16, 24, 32, 40, 48, 56]
    names = [ADAPTERS[index] for index in (12, 13, 14, 12, 13, 14, 12)]
    assert [change.model for change in script.changes] == names
    assert script.changes[0].source == "/srv/adapters/adapter-12"
    by_requests = made(arrivals=Poisson(rate=10), requests=100, churn=Churn(every_s=1, adapters=1, source="/a"))
    assert len(by_requests.changes) == int(by_requests.requests[-1].at or 0)


def test_hooks_are_handed_on() -> None:
    hook = Hook(at_s=3, run="kill -9 1")
    assert made(hooks=(hook,)).hooks == (hook,)


def test_a_trace_gives_times_and_both_lengths(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,30,3\n1,10,9\n4,2000,5\n")
    script = made(
        arrivals=Trace(file=str(file), speed=2), requests=0, duration_s=9, prompt=OfTrace(high=50), output=OfTrace()
    )
    assert [request.at for request in script.requests] == [0, 0.5, 2]
    assert [len(request.text.split(" ")) for request in script.requests] == [30, 10, 50]
    assert [request.max_tokens for request in script.requests] == [3, 9, 5]


def test_warm_up_is_like_the_run_and_shares_no_prompt_with_any() -> None:
    workload = Workload(
        name="w",
        endpoint="chat",
        requests=500,
        warm_up=40,
        arrivals=Poisson(rate=1),
        conversations=Conversations(turns=Fixed(tokens=2)),
        cold=ColdArrivals(share=0.5, reserved=10),
        shared_prefix=SharedPrefix(tokens=20),
        hooks=(Hook(at_s=1, run="true"),),
    )
    runs = [build(workload, "base", ADAPTERS, repeat) for repeat in range(3) for build in (build_script, build_warm_up)]
    texts = [request.text for run in runs for request in run.requests]
    assert len(set(texts)) == len(texts) == 3 * 540
    warm_up = runs[1]
    assert len(warm_up.requests) == 40 and not warm_up.changes and not warm_up.hooks
    assert all(request.at is None and request.follows is None and not request.cold for request in warm_up.requests)
    assert {request.model for request in warm_up.requests} <= set(ADAPTERS[:10])
    prefix = runs[0].requests[0].text.split(" ")[:20]
    assert all(request.text.split(" ")[:20] == prefix for request in warm_up.requests)
    assert not build_warm_up(msgspec.structs.replace(workload, warm_up=0), "base", ADAPTERS).requests


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"adapters": 21}, r"adapters is 21, but the server lists 20; load more, lower it"),
        ({"cold": ColdArrivals(share=0.1, reserved=20)}, r"cold.reserved is 20, but 20 adapters are used .*lower it"),
        ({"adapters": 3, "cold": ColdArrivals(share=1, reserved=5)}, r"cold.reserved is 5, but 3 adapters are used"),
        ({"popularity": Weights(weights={"who": 1})}, r"popularity.weights names who, but .*adapter-4, …; name those"),
        (
            {"duration_s": 10, "churn": Churn(every_s=1, adapters=21, source="/a")},
            r"churn.adapters is 21, but 20 adapters take requests; lower it",
        ),
        (
            {"duration_s": 10, "churn": Churn(every_s=1e-6, adapters=1, source="/a")},
            r"churn.every_s is 1e-06: .* changes in 10 s, over 100,000; raise it",
        ),
        ({"prompt": Fixed(tokens=10**6)}, r"prompt: 2,000,000,000 tokens in all, over 500,000,000; ask for fewer"),
        ({"arrivals": Trace(file="nowhere.csv")}, r"nowhere.csv: No such file"),
        (
            {
                "requests": 0,
                "duration_s": 1e6,
                "endpoint": "chat",
                "arrivals": Poisson(rate=1),
                "conversations": Conversations(turns=Fixed(tokens=100)),
            },
            r"conversations: .* turns in one run, over 2,000,000; lower `duration_s`",
        ),
    ],
)
def test_what_does_not_fit_the_server_is_refused_with_the_remedy(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecInvalid, match=said):
        made(**fields)


def test_adapters_are_needed_where_requests_go_to_them() -> None:
    with pytest.raises(SpecInvalid, match=r"base_share is 0.5, but the server lists no adapter .*set base_share to 1"):
        made([], base_share=0.5)
