"""Comparing two results: a planted slow server is found, chance isn't taken for one, other loads are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from livery_loadtest.compare import (
    Comparison,
    Metric,
    Verdict,
    compare,
    holm,
    sign_flips,
    sign_flips_together,
)
from livery_loadtest.pairing import NotComparable
from livery_loadtest.record import Run
from livery_loadtest.report.comparison import comparison_page, headline, print_comparison, write_comparison
from livery_loadtest.report.result import Result, Server, make_result
from loadtest.made_runs import BUSY, GOOD, Making, made_run, workload
from loadtest.test_result_document import ORIGIN


def result(name: str = "a", repeats: int = 1, seed: int = 0, invalid: bool = False, **making: float) -> Result:
    runs = [
        made_run(Making(requests=150, seed=seed, tenants=(), **making), name, repeat, BUSY if invalid else GOOD)  # type: ignore[arg-type]
        for repeat in range(repeats)
    ]
    return make_result(workload(tenants=[]), [Server(name=name, url="http://host")], runs, ORIGIN)


def metric(found: Comparison, name: str) -> Metric:
    return next(one for one in found.metrics if one.name == name)


@pytest.mark.parametrize("repeats", [1, 8])
def test_a_planted_slow_server_is_found(repeats: int) -> None:
    """B takes 1.4 times as long for its first token; requests and all else are the same."""
    found = compare(result(repeats=repeats), result("b", repeats, ttft_s=0.08 * 1.4))
    ttft = metric(found, "TTFT p50")
    assert ttft.verdict is Verdict.SLOWER
    assert ttft.better is False
    assert ttft.p is not None and ttft.p < 0.05
    assert ttft.ratio is not None
    assert ttft.ratio.value == pytest.approx(1.4, rel=0.01)  # what the client is late is in both
    assert ttft.ratio.low <= ttft.ratio.value <= ttft.ratio.high
    for same in ("ITL p50", "ITL p99", "TPOT p50", "failed requests"):
        assert metric(found, same).verdict is Verdict.NOTHING
    assert ("by repeat" if repeats == 8 else "by request") in found.pairs
    back = metric(compare(result("b", repeats, ttft_s=0.08 * 1.4), result(repeats=repeats)), "TTFT p50")
    assert back.verdict is Verdict.FASTER
    assert back.ratio is not None
    assert back.ratio.value == pytest.approx(1 / ttft.ratio.value)


def test_a_planted_slow_decoder_is_found_in_its_gaps() -> None:
    found = compare(result(), result("b", gap_s=0.0132))
    for name in ("ITL p50", "TPOT p50"):
        one = metric(found, name)
        assert one.verdict is Verdict.SLOWER
        assert one.ratio is not None
        assert one.ratio.value == pytest.approx(1.1, rel=0.01)
    assert metric(found, "TTFT p50").verdict is Verdict.NOTHING


@pytest.mark.parametrize("repeats", [1, 7])
def test_a_result_beside_itself_shows_no_difference(repeats: int) -> None:
    found = compare(result(repeats=repeats), result(repeats=repeats))
    for one in found.metrics:
        assert one.verdict is Verdict.NOTHING, one.name
        if one.ratio is not None:
            assert (one.ratio.low, one.ratio.value, one.ratio.high) == pytest.approx((1, 1, 1))
    assert "No difference" in headline(found)


def test_planted_failures_are_found() -> None:
    found = compare(result(), result("b", failing=0.2))
    failed = metric(found, "failed requests")
    assert (failed.a, failed.verdict, failed.better, failed.ratio) == (0.0, Verdict.MORE, False, None)
    good = metric(found, "good answers")
    assert (good.verdict, good.better) == (Verdict.FEWER, False)
    assert metric(found, "requests").verdict is Verdict.SLOWER
    over_repeats = metric(compare(result(repeats=6), result("b", 6, failing=0.2)), "failed requests")
    assert (over_repeats.verdict, over_repeats.ratio, over_repeats.p) == (Verdict.MORE, None, pytest.approx(2 / 64))


def by_definition(differences: list[float]) -> float:
    """All ways to give them signs, one by one."""
    observed, as_far = abs(sum(differences)), 0
    for ways in range(2 ** len(differences)):
        total = sum(-value if ways >> place & 1 else value for place, value in enumerate(differences))
        as_far += abs(total) >= observed - 1e-9
    return as_far / 2 ** len(differences)


@given(st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=8))
def test_sign_flips_follow_the_definition(differences: list[float]) -> None:
    assert sign_flips(np.asarray(differences)) == pytest.approx(by_definition(differences))


def test_sign_flips_cry_wolf_one_time_in_twenty() -> None:
    """False positives at 5 % where there is no difference, exactly and by random flips."""
    draw = np.random.default_rng(7)
    for pairs, tries in ((8, 2000), (20, 300)):
        wrong = np.mean([sign_flips(draw.normal(0, 1, pairs)) < 0.05 for _ in range(tries)])
        assert wrong <= 0.05 + 3 * (0.05 * 0.95 / tries) ** 0.5


def test_two_of_a_kind_are_seldom_told_apart_by_requests() -> None:
    """Without repeats, two servers that are the same: the bootstrap's false positives stay near 5 %."""
    wrong = []
    for seed in range(16):
        found = compare(result(seed=seed), result("b", seed=1000 + seed))
        wrong += [metric(found, name).verdict is not Verdict.NOTHING for name in ("TTFT p50", "ITL p50")]
    assert np.mean(wrong) <= 0.17  # 32 tries: three standard errors above 5 %


def test_of_a_dozen_numbers_none_is_shown_by_chance_alone() -> None:
    """Two servers that are the same, 12 numbers that move together: seldom is any of them shown to differ."""
    draw = np.random.default_rng(3)
    tries, alone, together = 400, 0, 0
    for _ in range(tries):
        shared = draw.normal(0, 1, 8)
        differences = np.asarray([shared + draw.normal(0, 1, 8) for _ in range(12)])
        alone += min(sign_flips(row) for row in differences) < 0.05
        together += min(sign_flips_together(differences)) < 0.05
    most = 0.05 + 3 * (0.05 * 0.95 / tries) ** 0.5
    assert together / tries <= most
    assert alone / tries > 2 * most, "or this shows nothing"


def test_one_number_that_differs_is_shown_beside_others_that_do_not() -> None:
    """Eight repeats are enough, which by Holm's 12 times 2 in 256 they wouldn't be."""
    draw = np.random.default_rng(4)
    noise = draw.normal(0, 1, (11, 8))
    found = sign_flips_together(np.asarray([*noise, np.linspace(0.9, 1.1, 8)]))
    assert found[-1] < 0.05 < 12 * sign_flips(np.ones(8))
    assert min(found[:-1]) > 0.05


def step_down_by_definition(differences: list[list[float]]) -> list[float]:
    """Box 4 of Ge, Dudoit and Speed (2003), in loops, with t taken as sum over root of the sum of squares."""
    count = len(differences[0])

    def far(row: list[float], ways: int) -> float:
        size = sum(value**2 for value in row) ** 0.5
        return abs(sum(-value if ways >> at & 1 else value for at, value in enumerate(row))) / size if size else 0.0

    left = sorted(range(len(differences)), key=lambda place: -far(differences[place], 0))
    found, before = [0.0] * len(left), 0.0
    while left:
        observed = far(differences[left[0]], 0)
        farthest = [max(far(differences[place], ways) for place in left) for ways in range(2**count)]
        before = max(before, sum(one >= observed - 1e-9 for one in farthest) / 2**count)
        found[left.pop(0)] = before
    return found


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.integers(-9, 9), min_size=n, max_size=n), min_size=1)))
@settings(max_examples=40, deadline=None)
def test_flips_of_several_numbers_follow_the_definition(differences: list[list[int]]) -> None:
    rows = np.asarray(differences[:5], dtype=np.float64)
    together = sign_flips_together(rows)
    assert together == pytest.approx(step_down_by_definition(rows.tolist()))
    assert sign_flips_together(rows[:1]) == pytest.approx([sign_flips(rows[0])])
    for row, adjusted in zip(rows, together, strict=True):
        assert adjusted >= sign_flips(row) - 1e-12


def test_holm_adjusts_as_worked_out_by_hand() -> None:
    """4 times 0.005, 3 times 0.01, 2 times 0.03, and 0.04 no surer than the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("repeats", [1, 8])
def test_the_verdict_goes_by_all_numbers_together(repeats: int) -> None:
    found = compare(result(repeats=repeats), result("b", repeats, seed=50, ttft_s=0.09))
    for one in found.metrics:
        if one.p is not None:
            assert one.p_alone is not None
            assert one.p >= one.p_alone
            assert (one.verdict is Verdict.NOTHING) == (one.p >= 0.05 or one.a == one.b)
    assert f"any of these {len(found.metrics)} numbers" in comparison_page(found)


def test_a_repeat_without_a_single_answer_says_nothing_of_latencies() -> None:
    """Of seven repeats one failed altogether: the six others are compared, and its failures are."""
    whole = result(repeats=7)
    runs = [made_run(Making(requests=150, tenants=(), ttft_s=0.2), "b", repeat, GOOD) for repeat in range(6)]
    runs.append(made_run(Making(requests=150, tenants=(), failing=1.0), "b", 6, GOOD))
    found = compare(whole, make_result(workload(tenants=[]), [Server(name="b", url="http://host")], runs, ORIGIN))
    ttft = metric(found, "TTFT p50")
    assert (ttft.verdict, ttft.p_alone) == (Verdict.SLOWER, pytest.approx(2 / 64))
    assert "by repeat" in found.pairs


def test_six_repeats_that_all_agree_are_enough_and_five_are_not() -> None:
    """With five, even unanimous signs come about by chance 2 times in 32: the requests are asked instead."""
    assert sign_flips(np.ones(6)) == pytest.approx(2 / 64)
    assert sign_flips(np.ones(5)) > 0.05
    slow = compare(result(repeats=5), result("b", 5, ttft_s=0.2))
    assert "by request, 5 repeats" in slow.pairs
    assert metric(slow, "TTFT p50").verdict is Verdict.SLOWER


def test_other_workloads_are_refused_by_the_fields_that_differ() -> None:
    other = make_result(
        workload(tenants=[], seed=5, requests=10), [Server(name="b", url="http://host")], [made_run(Making())], ORIGIN
    )
    with pytest.raises(NotComparable, match=r"seed: 0 and 5; requests: 200 and 10"):
        compare(result(), other)


def test_targets_have_to_be_named_where_there_are_several() -> None:
    runs = [made_run(Making(requests=40), name) for name in ("x", "y")]
    both = make_result(workload(), [Server(name=name, url="http://host") for name in ("x", "y")], runs, ORIGIN)
    with pytest.raises(NotComparable, match=r"2 targets \(x, y\): name one"):
        compare(both, both)
    with pytest.raises(NotComparable, match="no target 'z'; it has x, y"):
        compare(both, both, "x", "z")
    assert compare(both, both, "x", "y").a == "x"


def test_only_what_both_have_is_paired() -> None:
    """An interrupted result beside a whole one: the requests and repeats that both have."""
    whole = result(repeats=2)
    run = made_run(Making(requests=150, tenants=()), "b", 0)
    cut = Run("b", 0, run.started, run.seconds, run.records[:60], GOOD, interrupted=True)
    part = make_result(workload(tenants=[]), [Server(name="b", url="http://host")], [cut], ORIGIN)
    found = compare(whole, part)
    assert (found.repeats, found.requests) == (1, 60)
    assert metric(found, "TTFT p50").ratio is not None
    nothing = make_result(workload(tenants=[]), [Server(name="b", url="x")], [Run("b", 9, 0.0, 1.0, [], GOOD)], ORIGIN)
    with pytest.raises(NotComparable, match="no repeat"):
        compare(whole, nothing)


def cut(whole: Result, requests: int, times: Sequence[int] = (0,), interrupted: bool = True) -> Result:
    """The same with only the first requests of these repeats, which took as long as their last answer."""
    runs = []
    for place in range(len(whole.repeats)):
        run = made_run(Making(requests=150, tenants=()), "a", place, GOOD)
        if place in times:
            records = run.records[:requests]
            seconds = max(record.finished for record in records) - run.started
            run = replace(run, records=records, seconds=seconds, interrupted=interrupted)
        runs.append(run)
    return make_result(whole.workload, [Server(name="a", url="http://host")], runs, ORIGIN)


@pytest.mark.parametrize("repeats", [1, 2, 7])
def test_a_run_beside_itself_cut_in_half_is_no_faster_and_said_to_be_cut(repeats: int) -> None:
    whole = result(repeats=repeats)
    half = cut(whole, 75, range(repeats))
    for found, side in ((compare(whole, half), "B"), (compare(half, whole), "A")):
        for one in found.metrics:
            assert one.verdict is (Verdict.UNKNOWN if one.unit == "per second" else Verdict.NOTHING), one.name
            assert one.unit != "per second" or one.a is one.b is one.p is None
        assert len(found.doubts) == repeats
        assert found.doubts[0] == f"{side}: a, repeat 1: interrupted: only requests that both finished are compared"
        assert "interrupted: only requests" in comparison_page(found)
    assert not compare(half, half).doubts[0].startswith("B")
    assert {one.verdict for one in compare(half, half).metrics} == {Verdict.NOTHING}, "both ran as long for the same"


@pytest.mark.parametrize("repeats", [3, 8])
def test_rates_are_of_the_repeats_that_ran_to_their_end(repeats: int) -> None:
    whole = result(repeats=repeats)
    one = metric(compare(whole, cut(whole, 75, [repeats - 1])), "output tokens")
    assert one.verdict is Verdict.NOTHING
    assert one.a == one.b is not None


@pytest.mark.parametrize("repeats", [2, 7])
def test_a_whole_run_of_chats_has_its_own_turns_and_its_own_rate(repeats: int) -> None:
    """Where the clock ends chats, the slower server is asked fewer turns: no run was cut."""
    chats = workload(tenants=[], endpoint="chat", conversations={"turns": {"kind": "fixed", "tokens": 3}})
    whole = msgspec.structs.replace(result(repeats=repeats), workload=chats)
    fewer = cut(whole, 140, range(repeats), interrupted=False)
    one = metric(compare(whole, fewer), "requests")
    assert one.a == pytest.approx(whole.summary[0].requests_per_second.value, rel=0.01)
    assert one.b == pytest.approx(fewer.summary[0].requests_per_second.value, rel=0.01)
    assert (one.verdict is Verdict.UNKNOWN) is (repeats == 2), "what isn't alike can't be drawn in pairs"
    assert not compare(whole, fewer).doubts


def called(names: Callable[[str], str], base: str = "") -> Result:
    """A result whose requests ask for models by these names."""
    run = made_run(Making(requests=60, tenants=(), adapters=3), "a")
    for record in run.records:
        record.planned = replace(record.planned, model=names(record.planned.model))
    return make_result(workload(tenants=[]), [Server(name="a", url="http://host", base=base)], [run], ORIGIN)


def test_servers_that_had_other_models_are_not_compared() -> None:
    """Renamed one by one they may be the same ones, which is asked; else the requests aren't."""
    console = Console(width=300, record=True, quiet=False)
    plain = called(str)
    assert compare(plain, called(str)).names == ""
    found = compare(plain, called(lambda name: name.replace("adapter-1", "pirate")))
    assert found.names == "A's models have other names at B: adapter-1 is pirate. Are they the same ones?"
    print_comparison(found, console)
    assert found.names in console.export_text()
    assert "adapter-1 is pirate" in comparison_page(found)
    one_model = (
        r"request \d+ asked A for adapter-\d and B for .*: the servers had other models .* --adapters and --base"
    )
    for other in (called(lambda name: "adapter-0"), called(lambda name: name.replace("adapter-2", "adapter-1"))):
        for pair in ((plain, other), (other, plain)):
            with pytest.raises(NotComparable, match="asked A for adapter-"):
                compare(*pair)
    with pytest.raises(NotComparable, match=one_model):
        compare(called(str, "adapter-0"), called(lambda name: name.replace("adapter", "x"), "x-1"))
    assert (
        "adapter-0 is x-0"
        in compare(called(str, "adapter-0"), called(lambda n: n.replace("adapter", "x"), "x-0")).names
    )


def test_a_doubtful_result_is_told_in_every_report() -> None:
    found = compare(result(), result("b", invalid=True))
    assert found.doubts == (f"B: b, repeat 1: {BUSY.reasons[0]}",)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(found, console)
    assert BUSY.reasons[0] in console.export_text()
    assert "Invalid" in comparison_page(found)


def test_a_server_that_had_the_prompts_in_its_cache_is_told() -> None:
    """Measured a second time without a new start, a server is faster than itself."""
    console = Console(width=300, record=True, quiet=False)

    def cached(tokens: int | None) -> Result:
        run = made_run(Making(requests=50, tenants=()), "a")
        for record in run.records:
            record.cached_tokens = tokens
        return make_result(workload(tenants=[]), [Server(name="a", url="http://host")], [run], ORIGIN)

    found = compare(cached(0), cached(60))
    said = "0% of the prompts' tokens came from A's cache, 94% from B's: if B had been asked this before, it is faster"
    assert found.cached.startswith(said)
    print_comparison(found, console)
    assert said in console.export_text()
    assert "94% from B&#39;s: if B had been asked" in comparison_page(found)
    assert "if A had been asked" in compare(cached(60), cached(0)).cached
    for a, b in ((60, 60), (0, 4), (None, 60), (60, None)):
        same = compare(cached(a), cached(b))
        assert same.cached == "" and "Not alike" not in comparison_page(same), (a, b)


def test_a_comparison_as_json(tmp_path: Path) -> None:
    found = compare(result(), result("b", ttft_s=0.2))
    write_comparison(found, tmp_path / "deep" / "comparison.json")
    told = json.loads((tmp_path / "deep" / "comparison.json").read_text())
    assert told["metrics"][0]["name"] == "TTFT p50"
    assert told["metrics"][0]["verdict"] == "slower"
    assert msgspec.convert(told, Comparison) == found


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(1.0, 3.0))
def test_intervals_are_about_the_ratio_and_values_give_it(seed: int, times: float) -> None:
    found = compare(result(seed=seed), result("b", seed=seed, ttft_s=0.08 * times))
    for one in found.metrics:
        if one.ratio is not None and one.a and one.b:
            assert one.ratio.low <= one.ratio.value <= one.ratio.high
            assert one.ratio.value == pytest.approx(one.b / one.a)
