"""Requests played through replicas: each is served once, times and places are what they must be, policies differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from livery.scale.plan.accelerators import accelerator
from livery.scale.plan.planner import make_plan
from livery.scale.plan.popularity import lru_hit_rate, zipf
from livery.scale.plan.question import Question
from livery.scale.plan.refusal import PlanRefused
from livery.scale.plan.shapes import known_models
from livery.scale.ray_routing import FEW, Standing, ranked
from livery.scale.simulation.cluster import jobs_of, play, serve, spec_of
from livery.scale.simulation.load import Requests, make_requests
from livery.scale.simulation.policies import (
    POLICIES,
    Affinity,
    BoundedHashing,
    Hashing,
    LeastLoaded,
    OnRay,
    Policy,
    View,
)
from livery.scale.simulation.policies import Random as AnyReplica
from livery.scale.simulation.replica import DEVICE, NEVER, NONE, Adapters

QUESTION = Question(gpu=accelerator("l40s"), model=known_models()["llama-3.1-8b"], adapters=2000, host_memory=64e9)
PLAN = make_plan(QUESTION)
SPEC = spec_of(PLAN.replica)


class Once(list[float]):
    """A list whose entries are set once."""

    def __setitem__(self, index: object, value: object) -> None:
        assert isinstance(index, int)
        assert self[index] == NEVER, f"request {index} a second time"
        super().__setitem__(index, value)  # type: ignore[call-overload]


def load(count: int, replicas: int, share: float, adapters: int = 2000, seed: int = 0) -> Requests:
    rate = share * replicas * PLAN.replica.capacity
    return make_requests("conv", count, rate, adapters, 1.0, 16_000, seed)


@given(
    replicas=some.integers(1, 5),
    slots=some.integers(1, 6),
    host_slots=some.integers(6, 12),
    max_running=some.integers(1, 6),
    room=some.integers(16_000, 60_000),
    share=some.floats(0.05, 3.0),
    kind=some.sampled_from(POLICIES),
    seed=some.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_every_request_is_served_once(
    replicas: int, slots: int, host_slots: int, max_running: int, room: int, share: float, kind: type[Policy], seed: int
) -> None:
    spec = replace(SPEC, slots=slots, host_slots=host_slots, max_running=max_running, kv_tokens=room)
    requests = load(120, replicas, share, adapters=30, seed=seed)
    jobs = jobs_of(requests, spec)
    jobs = replace(jobs, first=Once(jobs.first), last=Once(jobs.last))
    served = serve(requests.times.tolist(), jobs, spec, replicas, kind, seed)
    times, first, last = requests.times, np.array(jobs.first), np.array(jobs.last)
    assert np.all(np.isfinite(last))
    assert np.all(first >= times + np.array(jobs.reading) - 1e-9)
    # A row gets no token faster than alone.
    assert np.all(last - first >= (requests.outputs - 1) * spec.costs.weights * (1 - 1e-6) - 1e-6)
    assert NONE not in jobs.found
    assert len(served.places) == len(requests) and set(served.places) <= set(range(replicas))
    # A replica reads one prompt after the other.
    for index in range(replicas):
        own = served.places == index
        ends, lengths = first[own], np.array(jobs.reading)[own]
        order = np.argsort(ends)
        assert np.all(np.diff(ends[order]) >= lengths[order][1:] - 1e-9)
        assert served.busy[index] >= lengths.sum() - 1e-6


def test_one_request_alone_takes_its_load_its_prompt_and_its_steps() -> None:
    requests = Requests(np.array([5.0]), np.array([700]), np.array([41]), np.array([QUESTION.adapters - 1]))
    jobs = jobs_of(requests, SPEC)
    serve([5.0], jobs, SPEC, 2, LeastLoaded, 0)
    reads = SPEC.costs.prefill(700)
    assert jobs.first[0] == pytest.approx(5 + SPEC.store_load + SPEC.host_load + reads)
    # Its context grows from 700 to 740, and costs are taken as they were when it began.
    assert jobs.last[0] - jobs.first[0] == pytest.approx(40 * SPEC.costs.decode(1, 720, 1), rel=2e-3)


@given(moves=some.lists(some.tuples(some.integers(0, 9), some.floats(0, 0.3)), min_size=1, max_size=60))
@settings(deadline=None)
def test_a_device_holds_no_more_adapters_than_fit(moves: list[tuple[int, float]]) -> None:
    spec = replace(SPEC, slots=3, host_slots=5, host_load=0.1, store_load=0.2)
    holders: dict[int, set[int]] = {}
    announced: dict[int, set[int]] = {}
    adapters = Adapters(spec, 0, holders, announced)
    now, held, asked = 0.0, [], 0
    by_request: dict[int, int] = {}
    for number, (adapter, passes) in enumerate(moves):
        now += passes
        held += adapters.arrived(now)
        by_request[number] = adapter
        asked += 1
        if adapters.take(adapter, number, now) == DEVICE:
            held.append(number)
        used = {by_request[request] for request in held}
        assert len(used) <= spec.slots
        on_device = {one for one, where in holders.items() if where}
        assert used <= on_device
        assert on_device <= {one for one, where in announced.items() if where} <= set(by_request.values())
        if len(held) > 2:
            adapters.leave(by_request[held.pop(0)], now)
            asked -= 1
    while asked:  # every one comes to its turn
        now += 1.0
        held += adapters.arrived(now)
        assert held, "nobody's adapter comes"
        adapters.leave(by_request[held.pop(0)], now)
        asked -= 1
    assert sum(bool(where) for where in holders.values()) <= spec.slots
    assert sum(bool(where) for where in announced.values()) <= spec.slots + spec.host_slots


def test_the_steady_state_is_that_of_the_plan() -> None:
    """One replica, requests of one length at random times: rows and adapters found as the formulas say."""
    count, rng = 6000, np.random.default_rng(2)
    service = PLAN.replica.at(0.6 * PLAN.replica.capacity)
    requests = Requests(
        np.cumsum(rng.exponential(1 / service.rate, count)),
        np.full(count, QUESTION.prompt_tokens),
        np.full(count, QUESTION.output_tokens),
        rng.choice(QUESTION.adapters, size=count, p=zipf(QUESTION.adapters, QUESTION.zipf)),
    )
    jobs = jobs_of(requests, SPEC)
    serve(requests.times.tolist(), jobs, SPEC, 1, AnyReplica, 0)
    first, last = np.array(jobs.first), np.array(jobs.last)
    rows = (last - first).sum() / (last.max() - first.min())
    assert rows == pytest.approx(service.rows, rel=0.1)
    assert np.mean((last - first) / (QUESTION.output_tokens - 1)) == pytest.approx(service.tpot, rel=0.1)
    found = np.array(jobs.found)[count // 3 :]
    assert np.mean(found == DEVICE) == pytest.approx(lru_hit_rate(PLAN.replica.shares, SPEC.slots), abs=0.03)


def test_policies_that_know_adapters_find_them_more_often_and_spread_the_load() -> None:
    requests = load(6000, 8, 0.7)
    outcome = {kind: play(requests, SPEC, 8, kind, 1) for kind in POLICIES}
    for kind in (Affinity, BoundedHashing, OnRay):
        assert outcome[kind].hit_rate > outcome[AnyReplica].hit_rate + 0.1
        assert outcome[kind].ttft_p95 < outcome[AnyReplica].ttft_p95
    # The most wanted adapter is asked for more often than one replica can answer.
    assert outcome[Hashing].imbalance > 1.3 > outcome[BoundedHashing].imbalance
    assert outcome[Affinity].imbalance < 1.3
    assert play(requests, SPEC, 8, Affinity, 1) == outcome[Affinity]


def test_what_routes_on_ray_is_simulated_by_its_own_order() -> None:
    loads, having = [3, 0, 7, 1, 70], {2: {2, 4}}
    view = View(loads, announced=having)
    policy = OnRay(view, 0)
    for adapter in (2, 5):
        standing = [Standing(str(one), one in having.get(adapter, ()), load) for one, load in enumerate(loads)]
        ((first,), *_) = ranked(str(adapter), standing, FEW)
        assert policy.choose(adapter) == int(first.replica)
    assert policy.choose(2) == 2, "who has it and isn't busy"
    view.loads[:] = [0, 0, 90, 0, 70]
    assert policy.choose(2) not in (2, 4), "both have far more than their share"
    assert {OnRay(View([0] * 64), 0).choose(adapter) for adapter in range(2000)} == set(range(64))


@given(loads=some.lists(some.integers(0, 50), min_size=1, max_size=20), adapter=some.integers(0, 1000))
def test_bounded_hashing_keeps_its_bound_and_an_adapters_place(loads: list[int], adapter: int) -> None:
    view = View(loads)
    policy = BoundedHashing(view, 0)
    assert loads[policy.choose(adapter)] < view.bound
    view.loads[:] = [0] * len(loads)
    assert policy.choose(adapter) == Hashing(View(loads), 9).choose(adapter)


@given(seed=some.integers(0, 50), kind=some.sampled_from(POLICIES))
@settings(deadline=None, max_examples=20)
def test_a_policy_names_a_replica_whoever_holds_what(seed: int, kind: type[Policy]) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    view = View(rng.integers(0, 30, count).tolist(), {3: set(rng.integers(0, count, 3).tolist()), 4: set()})
    policy = kind(view, seed)
    for adapter in (3, 4, 5):
        assert policy.choose(adapter) in range(count)


def test_a_trace_by_path_keeps_its_rows_in_order(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0.0,10,4\n1.0,20,5\n4.0,30,6\n")
    found = make_requests(str(file), 5, 2.0, 7, 1.0, 1000, 0)
    assert found.prompts.tolist() == [10, 20, 30, 10, 20]
    assert found.outputs.tolist() == [4, 5, 6, 4, 5]
    assert found.times[-1] == pytest.approx(2.5)
    gaps = np.diff(found.times)
    assert gaps[1] == pytest.approx(3 * gaps[0])
    assert set(found.adapters) <= set(range(7))
    with pytest.raises(PlanRefused, match=r"nowhere\.csv"):
        make_requests(str(tmp_path / "nowhere.csv"), 5, 2.0, 7, 1.0, 1000, 0)
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0.0,10,4\n")
    with pytest.raises(PlanRefused, match="different times"):
        make_requests(str(file), 5, 2.0, 7, 1.0, 1000, 0)


def test_a_load_comes_at_its_rate_and_fits() -> None:
    found = make_requests("code", 5000, 40.0, 100, 1.0, 3000, 4)
    assert found.times[-1] == pytest.approx(5000 / 40)
    assert np.all(np.diff(found.times) >= 0)
    assert np.all(found.prompts + found.outputs <= 3000) and np.all(found.prompts >= 1) and np.all(found.outputs >= 1)
    assert np.bincount(found.adapters).argmax() == 0
