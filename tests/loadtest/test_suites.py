"""The suites that come with the package can be run as they are, last as long as they say, and scale."""

from __future__ import annotations

import subprocess

import pytest

from livery_loadtest.build import build_script, build_warm_up
from livery_loadtest.kinds import KINDS
from livery_loadtest.prompts import OWN_WORDS
from livery_loadtest.spec import Between, Closed, Gamma, SpecInvalid
from livery_loadtest.suites import suite, suite_names

NAMES = ["chaos", "scale", "smoke", "soak", "standard"]


def test_these_suites_come_with_the_package() -> None:
    assert suite_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_runs_on_a_server_with_as_many_adapters_as_it_says(name: str) -> None:
    found = suite(name)
    names = [f"adapter-{index}" for index in range(found.adapters)]
    seen: set[str] = set()
    seconds = 0.0
    for workload in found.workloads:
        script = build_script(workload, "base", names)
        warm_up = build_warm_up(workload, "base", names)
        texts = {request.text for request in [*script.requests, *warm_up.requests]}
        assert len(texts) == len(script.requests) + len(warm_up.requests)
        long = {text for text in texts if text.count(" ") + 1 >= OWN_WORDS}
        assert not long & seen, "workloads of a suite share no prompts"
        seen |= long
        seconds += workload.duration_s or workload.requests / found.capacity
    # Warming up and what is under way at the end come on top.
    assert 0.75 * 60 * found.minutes <= seconds <= 60 * found.minutes
    assert found.name == name and found.notes
    assert len({workload.name for workload in found.workloads}) == len(found.workloads)


@pytest.mark.parametrize("name", NAMES)
def test_open_loops_stay_below_the_capacity(name: str) -> None:
    found = suite(name)
    for workload in found.workloads:
        turns = workload.conversations.turns if workload.conversations else None
        mean = (turns.low + turns.high) / 2 if isinstance(turns, Between) else 1.0
        assert isinstance(workload.arrivals, Closed) or workload.arrivals.rate * mean <= found.capacity


def test_the_standard_suite_has_what_traffic_is_made_of() -> None:
    found = suite("standard").workloads
    kinds = {workload.arrivals.__struct_config__.tag for workload in found}
    assert kinds == set(KINDS["arrivals.kind"]) - {"trace"}
    for part in ("shared_prefix", "conversations", "cold", "structured", "disconnects"):
        assert any(getattr(workload, part) for workload in found), part
    assert any(isinstance(workload.arrivals, Gamma) and workload.arrivals.cv == 4 for workload in found)


@pytest.mark.parametrize("name", NAMES)
def test_what_counts_as_cold_was_asked_for_by_nothing_before(name: str) -> None:
    """Neither by the workloads before it, whose adapters are the same, nor by what warms up."""
    found = suite(name)
    names = [f"adapter-{index}" for index in range(found.adapters)]
    asked: set[str] = set()
    for workload in found.workloads:
        asked |= {request.model for request in build_warm_up(workload, "base", names).requests}
        script = build_script(workload, "base", names).requests
        assert not {request.model for request in script if request.cold} & asked
        assert bool(workload.cold) == any(request.cold for request in script)
        asked |= {request.model for request in script}


def test_the_scale_suite_differs_in_the_number_of_adapters_alone() -> None:
    found = suite("scale")
    assert [workload.adapters for workload in found.workloads] == [1, 10, 100, 1000, 2000]
    names = [f"adapter-{index}" for index in range(2000)]
    shapes = [
        [(one.at, one.max_tokens, one.text.count(" ")) for one in build_script(workload, "base", names).requests]
        for workload in found.workloads
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_rates_follow_the_capacity_and_lengths_and_time_are_scaled() -> None:
    plain, faster = suite("standard"), suite("standard", capacity=60, lengths=2, time=0.5)
    assert (faster.capacity, faster.lengths, faster.minutes) == (60, 2, 7.5)
    by_name = {workload.name: workload for workload in faster.workloads}
    for workload in plain.workloads:
        scaled = by_name[workload.name]
        assert scaled.requests == 5 * workload.requests and scaled.duration_s == workload.duration_s / 2
        if not isinstance(workload.arrivals, Closed):
            assert scaled.arrivals.rate == pytest.approx(10 * workload.arrivals.rate)
        else:
            assert scaled.arrivals == workload.arrivals
    assert by_name["prefixes"].shared_prefix is not None and by_name["prefixes"].shared_prefix.tokens == 256
    assert by_name["structured"].prompt.tokens == 128 and by_name["chats"].output.median == 48
    assert by_name["azure"].prompt.scale == 0.125 and by_name["azure"].prompt.high == 512
    assert suite("scale").workloads[0].prompt == Between(low=1, high=64)
    assert suite("scale", lengths=1).workloads[0].prompt == Between(low=8, high=512)
    short = suite("chaos", time=0.1).workloads[1]
    assert [hook.at_s for hook in short.hooks] == [4.5, 5.5] and short.duration_s == 15
    assert suite("soak", time=0.5).workloads[0].slopes[0].after_s == 450


def test_unknown_suites_and_scales_beyond_bounds_are_refused() -> None:
    with pytest.raises(SpecInvalid, match=r"no suite is called 'load'; there are chaos, .*; `livery bench run FILE`"):
        suite("load")
    with pytest.raises(SpecInvalid, match=r"suite standard: .* is over 1,000,000; scale it less"):
        suite("standard", lengths=1e6)
    with pytest.raises(SpecInvalid, match=r"suite standard: .* is over 2,000,000; scale it less"):
        suite("standard", capacity=1e9)


@pytest.mark.parametrize("index", [0, 1])
def test_the_chaos_hooks_say_what_they_need(index: int) -> None:
    """With a pattern that fits nothing: a hook that forgot its server must not hurt another's engine here."""
    environment = {"PATH": "/usr/bin:/bin", "ENGINE": "fits no process at all"}
    for hook in suite("chaos").workloads[index].hooks:
        told = subprocess.run(["sh", "-c", hook.run], env=environment, capture_output=True, text=True)
        assert told.returncode == 2 and "SERVER_PID: set it to the server's process id" in told.stderr


def test_a_chaos_hook_kills_a_child_of_that_server_and_no_other_process() -> None:
    (hook,) = suite("chaos").workloads[0].hooks
    server = subprocess.Popen(["sh", "-c", "sleep 591 & echo; wait"], stdout=subprocess.PIPE)
    other = subprocess.Popen(["sleep", "591"])
    try:
        assert server.stdout is not None and server.stdout.readline()
        environment = {"PATH": "/usr/bin:/bin", "SERVER_PID": str(server.pid), "ENGINE": "sleep 591"}
        assert subprocess.run(["sh", "-c", hook.run], env=environment).returncode == 0
        server.wait(60)
        assert other.poll() is None
    finally:
        other.kill()
        server.kill()
        for process in (other, server):
            process.wait()
