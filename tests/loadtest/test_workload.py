"""What is asked is reproducible, and no prompt is asked twice."""

from __future__ import annotations

from collections import Counter

import pytest

from livery_loadtest.workload import (
    WORDS,
    Phase,
    Popularity,
    Scenario,
    Workload,
    prompts,
    round_requests,
    spread,
)

ADAPTERS = ("a", "b", "c", "d")


def test_prompts_are_distinct_and_reproducible() -> None:
    first = prompts(200, 64, [7, 1])
    assert len(set(first)) == 200
    assert all(len(prompt.split()) == 64 for prompt in first)
    assert first == prompts(200, 64, [7, 1])
    assert not set(first) & set(prompts(200, 64, [7, 2]))


def test_short_prompts_are_still_distinct_or_refused() -> None:
    count = len(set(WORDS))
    assert sorted(prompts(count, 1, [0])) == sorted(set(WORDS))
    with pytest.raises(ValueError, match="fewer than"):
        prompts(count + 1, 1, [0])


def test_no_prompt_returns_in_another_round_scenario_or_phase() -> None:
    workload = Workload(requests=50)
    seen = [
        request.prompt
        for phase in Phase
        for scenario in Scenario
        for index in range(3)
        for request in round_requests(workload, scenario, "base", ADAPTERS, phase, index)
    ]
    assert len(seen) == 50 * len(Phase) * len(Scenario) * 3
    assert len(set(seen)) == len(seen)


def test_scenarios_name_the_base_or_the_adapters() -> None:
    workload = Workload(requests=8, max_tokens=5)
    base = round_requests(workload, Scenario.BASE, "base", ADAPTERS, Phase.MEASURED, 0)
    mixed = round_requests(workload, Scenario.MIXED, "base", ADAPTERS, Phase.MEASURED, 0)
    assert [request.model for request in base] == ["base"] * 8
    assert [request.model for request in mixed] == [*ADAPTERS, *ADAPTERS]
    assert {request.max_tokens for request in base + mixed} == {5}


def test_zipf_follows_its_weights_and_uniform_does_not() -> None:
    count = 40_000
    zipf = Counter(spread(ADAPTERS, count, Popularity.ZIPF, 1.0, [3]))
    total = sum(1 / rank for rank in range(1, 5))
    for rank, name in enumerate(ADAPTERS, start=1):
        assert zipf[name] / count == pytest.approx(1 / rank / total, abs=0.02)
    uniform = Counter(spread(ADAPTERS, count, Popularity.UNIFORM, 1.0, [3]))
    assert all(uniform[name] / count == pytest.approx(0.25, abs=0.02) for name in ADAPTERS)
