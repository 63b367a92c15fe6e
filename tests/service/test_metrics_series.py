"""Series per adapter and tenant, of the engine's own figures and of the server itself: bounded, and growing by work."""

from __future__ import annotations

import msgspec
import pytest

from livery.engine.base import EngineStats
from livery.engine.figures import AdapterUse, EngineFigures, RequestTimes, TenantStanding
from livery.engine.tally import AdapterLog, StepClock, figures, standings
from livery.generation import Usage
from livery.metrics import OTHER, Metrics, ServerState, Snapshot, Standing
from livery.survey import OwnCounting, OwnSurvey
from livery.under_way import UnderWay
from service.test_metrics import INFO, samples


def used(*uses: AdapterUse, restarts: int = 0, steps: int = 0) -> Snapshot:
    figures = EngineFigures(adapters=uses)
    stats = EngineStats(
        steps=steps, resident_adapters=("d1",), host_adapters=("d2",), restarts=restarts, figures=figures
    )
    return Snapshot(stats, Standing(3))


def test_an_adapter_tells_its_errors_its_last_use_and_its_cached_tokens() -> None:
    metrics = Metrics("base", INFO)
    meter = metrics.begin(Usage(5, 4), "pirate", "d1", "acme")
    meter.kind = "deadline_exceeded"
    meter.close("error")
    unforeseen = metrics.begin(Usage(5), "pirate", "d1", "acme")
    unforeseen.kind = "whatever a later engine may say"
    unforeseen.close("error")
    found = samples(metrics, None)
    assert found["livery_adapter_errors_total", "pirate", "deadline_exceeded"] == 1
    assert found["livery_adapter_errors_total", "pirate", "failed"] == 1
    assert found["livery_adapter_cached_tokens_total", "pirate"] == 4
    assert found["livery_adapter_last_use_timestamp_seconds", "pirate"] > 1e9
    assert found["livery_tenant_requests_total", "error", "acme"] == 2
    assert found["livery_tenant_prompt_tokens_total", "acme"] == 10


def test_what_the_engine_says_of_versions_is_told_by_adapter_and_counted_once() -> None:
    metrics = Metrics("base", INFO)
    for name, digest in (("pirate", "d1"), ("terse", "d2"), ("formal", "d3")):
        metrics.begin(Usage(1, 0, 1), name, digest).close("abort")
    first = used(AdapterUse("d1", 2, 0.5, 4, 1, 7, 3), AdapterUse("nobody's", 1, 0.25))
    for _ in range(3):  # several scrapers
        found = samples(metrics, first)
    assert found["livery_adapter_load_duration_seconds_count", "pirate"] == 2
    assert found["livery_adapter_load_duration_seconds_sum", "pirate"] == 0.5
    assert found["livery_adapter_evicted_total", "pirate"] == 1
    assert found["livery_adapter_load_failures_total", "pirate"] == 4
    assert found["livery_adapter_hits_total", "pirate"] == 7
    assert found["livery_adapter_misses_total", "pirate"] == 3
    assert found["livery_adapter_load_duration_seconds_count", OTHER] == 1
    tiers = {name: tier for (metric, name, tier, *_), value in by_tier(found) if metric and value}
    assert tiers == {"pirate": "device", "terse": "host", "formal": "store"}
    grown = samples(metrics, used(AdapterUse("d1", 3, 0.75, 5, 1, 9, 3)))
    assert grown["livery_adapter_hits_total", "pirate"] == 9
    assert grown["livery_adapter_load_failures_total", "pirate"] == 5
    anew = samples(metrics, used(AdapterUse("d1", 1, 0.5, 0, 0, 1, 1), restarts=1))
    assert anew["livery_adapter_hits_total", "pirate"] == 10
    assert anew["livery_adapter_load_duration_seconds_count", "pirate"] == 4


COUNTS = {
    "loads": "load_duration_seconds_count",
    "evictions": "evicted_total",
    "failures": "load_failures_total",
    "hits": "hits_total",
    "misses": "misses_total",
}


def counted(metrics: Metrics) -> dict[str, float]:
    found = samples(metrics, None)
    return {count: found[f"livery_adapter_{name}", "pirate"] for count, name in COUNTS.items()}


@pytest.mark.parametrize("after", [2, 3, 4])
def test_an_engine_that_was_started_anew_counts_from_zero_wherever_it_has_got_to(after: int) -> None:
    metrics = Metrics("base", INFO)
    metrics.begin(Usage(1, 0, 1), "pirate", "d1").close("abort")
    samples(metrics, used(AdapterUse("d1", 3, 0.5, 3, 3, 3, 3), steps=9))
    for _ in range(2):
        samples(metrics, used(AdapterUse("d1", after, 0.25, after, after, after, after), restarts=1, steps=2))
    assert counted(metrics) == dict.fromkeys(COUNTS, 3 + after)
    assert samples(metrics, None)["livery_adapter_load_duration_seconds_sum", "pirate"] == 0.75


@pytest.mark.parametrize("fallen", COUNTS)
@pytest.mark.parametrize("steps", [(1, 2, 3), (2, 2, 2)], ids=["later", "in the same step"])
def test_two_scrapes_that_settle_in_the_wrong_order_count_nothing_twice(
    fallen: str, steps: tuple[int, int, int]
) -> None:
    first = AdapterUse("d1", 3, 0.5, 3, 3, 3, 3)
    second = msgspec.structs.replace(first, load_seconds=0.75, **{fallen: 5})
    third = msgspec.structs.replace(second, load_seconds=1.0, **{fallen: 6})
    earlier, later, last = (used(use, steps=step) for use, step in zip((first, second, third), steps, strict=True))
    metrics = Metrics("base", INFO)
    metrics.begin(Usage(1, 0, 1), "pirate", "d1").close("abort")
    for snapshot in (later, earlier, last):
        samples(metrics, snapshot)
    assert counted(metrics) == {count: 6 if count == fallen else 3 for count in COUNTS}
    assert samples(metrics, None)["livery_adapter_load_duration_seconds_sum", "pirate"] == 1.0


def test_what_an_earlier_engine_said_comes_too_late_to_be_counted() -> None:
    metrics = Metrics("base", INFO)
    metrics.begin(Usage(1, 0, 1), "pirate", "d1").close("abort")
    for hits, restarts in ((5, 0), (1, 1), (4, 0), (2, 1)):
        samples(metrics, used(AdapterUse("d1", hits=hits), restarts=restarts, steps=hits))
    assert counted(metrics)["hits"] == 7


def test_a_version_that_the_engine_had_forgotten_counts_from_zero() -> None:
    metrics = Metrics("base", INFO)
    metrics.begin(Usage(1, 0, 1), "pirate", "d1").close("abort")
    for hits, steps in ((5, 10), (2, 5000), (3, 5001)):
        samples(metrics, used(AdapterUse("d1", hits=hits), steps=steps))
    assert counted(metrics)["hits"] == 8


def by_tier(found: dict[tuple[str, ...], float]) -> list[tuple[tuple[str, ...], float]]:
    return [(key, value) for key, value in found.items() if key[0] == "livery_adapter_tier"]


def test_tenants_are_bounded_like_adapters() -> None:
    metrics = Metrics("base", INFO)
    for number in range(150):
        metrics.begin(Usage(number + 1), tenant=f"tenant-{number}").close("abort")
    metrics.render(None)  # from here on the busiest have labels
    metrics.throttled("tenant-149", "limit")
    metrics.throttled("tenant-149", "room")
    held = {f"tenant-{number}": 2 for number in range(150)}
    standing = tuple(TenantStanding(name, 1, 1, float(number)) for number, name in enumerate(held))
    snapshot = Snapshot(EngineStats(figures=EngineFigures(tenants=standing)))
    text = metrics.render(snapshot, ServerState(open_by_tenant=held)).decode()
    assert text.count("livery_tenant_open_sequences{") == 101
    assert f'livery_tenant_open_sequences{{tenant="{OTHER}"}} 100.0' in text
    assert 'livery_tenant_fairness_lag_tokens{tenant="tenant-149"} 149.0' in text
    assert f'livery_tenant_fairness_lag_tokens{{tenant="{OTHER}"}} 49.0' in text
    for reason in ("limit", "room"):
        assert f'livery_tenant_throttled_total{{reason="{reason}",tenant="tenant-149"}} 1.0' in text


def test_where_an_engines_time_goes() -> None:
    clock, log = StepClock(), AdapterLog()
    clock.begin()
    clock.lap("schedule")
    clock.lap("launch")
    clock.end(3, 40)
    log.asked("d1", resident=False)
    log.read("d1", 0.25)
    log.read("d1", 0.5)
    log.placed("d1", 0.25)
    log.failed("d2")
    told = figures(clock, log, standings(["a", "a"], ["b"], {"a": 5.0}))
    found = samples(Metrics("base", INFO), Snapshot(EngineStats(steps=1, figures=told)))
    assert found["livery_engine_step_seconds_count",] == 1
    assert found["livery_engine_step_sequences_bucket", "2.0"] == 0
    assert found["livery_engine_step_sequences_bucket", "4.0"] == 1
    assert found["livery_engine_step_tokens_sum",] == 40
    assert found["livery_engine_phase_seconds_total", "launch"] > 0
    assert found["livery_engine_phase_seconds_total", "update"] == 0
    assert found["livery_adapter_read_seconds_sum",] == 0.75
    assert found["livery_adapter_copy_seconds_count",] == 1
    assert found["livery_adapter_loads_failed_total",] == 1
    assert told.tenants == (TenantStanding("a", 2, 0, 5.0), TenantStanding("b", 0, 1, 0.0))
    assert {use.digest: use.load_seconds for use in told.adapters} == {"d1": 1.0, "d2": 0.0}


def test_the_time_before_the_first_token_is_told_under_vllms_names() -> None:
    metrics = Metrics("base", INFO)
    meter = metrics.begin(Usage(1, 0, 1), "pirate", "d1")
    sequence = meter.sequence()
    sequence.begun(RequestTimes(2.0, 1.5, 0.25))
    sequence.tokens(1)
    sequence.finished("stop", 1)
    meter.finished()
    found = samples(metrics, None)
    assert found["vllm:request_queue_time_seconds_sum", "0", "base"] == 2
    assert found["vllm:request_prefill_time_seconds_sum", "0", "base"] == 0.25
    assert found["vllm:request_inference_time_seconds_count", "0", "base"] == 1


def test_a_scrape_while_the_engine_is_away_tells_what_is_known() -> None:
    metrics = Metrics("base", INFO)
    metrics.begin(Usage(5, 0, 3), "pirate", "d1").close("abort")
    text = metrics.render(None, ServerState(heartbeat_age_s=7.5, open_sequences=4, queued_tokens=9)).decode()
    assert "livery_ready 0.0" in text
    assert "livery_engine_heartbeat_age_seconds 7.5" in text
    assert "livery_open_sequences 4.0" in text
    assert 'livery_adapter_generation_tokens_total{adapter="pirate"} 3.0' in text
    assert "livery_engine_steps_total" not in text


def test_what_was_asked_for_is_listed_only_where_somebody_takes_the_list() -> None:
    """A process that is all of its server has nobody to tell, and would keep every version that was ever asked for."""
    alone, told = OwnCounting().metrics("base", INFO), Metrics("base", INFO, told=True)
    survey = OwnSurvey(alone, UnderWay())
    digests = [f"{number:064x}" for number in range(1000)]
    for metrics in (alone, told):
        for digest in digests:
            metrics.begin(Usage(5), "pirate", digest).close("abort")
    survey.count()
    assert alone.take().asked == []
    assert told.take().asked == [(digest, "pirate") for digest in digests]
    assert told.take().asked == []
    stats = EngineStats(resident_adapters=(digests[-1],))
    assert alone.in_memory(stats) == {"pirate"}


def test_ten_thousand_adapters_are_two_hundred_and_one() -> None:
    metrics = Metrics("base", INFO)
    for number in range(10_000):
        metrics.begin(Usage(number, 0, 1), f"adapter-{number}", f"{number:064x}").close("abort")
    text = metrics.render(Snapshot(EngineStats(), Standing(10_000))).decode()
    assert text.count("livery_adapter_prompt_tokens_total{") == 201
    assert "livery_adapters_registered 10000.0" in text
    assert text.count("\n") < 8_000
