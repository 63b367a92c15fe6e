"""Whole plans: numbers worked out by hand, what must add up, and which way they move."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from livery.bench.physics import Peak
from livery.scale.plan.accelerators import Accelerator, accelerator, known_accelerators
from livery.scale.plan.capacity import Replica
from livery.scale.plan.changes import changes
from livery.scale.plan.memory import GPUS, divide
from livery.scale.plan.planner import Plan, make_plan
from livery.scale.plan.popularity import zipf
from livery.scale.plan.question import Question
from livery.scale.plan.refusal import PlanRefused
from livery.scale.plan.roofline import Overlap, StepCosts, exchange_seconds
from livery.scale.plan.shapes import TARGETS, held_model, known_models, target_modules
from livery.scale.plan.told import figures, limit_words

LLAMA = known_models()["llama-3.1-8b"]


def asked(gpu: str = "h200", model: str = "llama-3.1-8b", adapters: int = 1000, **fields: Any) -> Question:
    return Question(gpu=accelerator(gpu), model=known_models()[model], adapters=adapters, **fields)


@pytest.mark.parametrize(
    ("rows", "distinct", "milliseconds"),
    [(1, 0, 3.506), (1, 1, 3.526), (32, 0, 4.489), (32, 32, 5.114), (128, 128, 9.983), (256, 8, 11.64)],
)
def test_a_decode_step_reads_weights_keys_and_adapters(rows: int, distinct: int, milliseconds: float) -> None:
    """By hand, Llama 3.1 8B in bf16 at 4.3 TB/s: (15.01 GB + rows·context·131 kB + distinct·83.9 MB) / bandwidth."""
    base = held_model(LLAMA, "bf16", 2, 2, TARGETS, 2).base
    costs = StepCosts.of(base, Peak(4.3e12, 1e18), Overlap.ALL, 16, 2048)
    context = 512 if rows == 1 else 1024
    assert 1e3 * costs.decode(rows, rows * context, distinct) == pytest.approx(milliseconds, rel=2e-3)
    assert costs.decode_bound(rows, rows * context, distinct) == "bandwidth"


@given(rows=some.integers(1, 300), context=some.integers(0, 5000), distinct=some.integers(0, 40))
def test_step_costs_are_the_benchmarks_floor(rows: int, context: int, distinct: int) -> None:
    base = held_model(LLAMA, "bf16", 2, 2, TARGETS, 2).base
    peak = Peak(3e12, 2e14)
    work = base.decode(rows, context, [16] * distinct, [16] * rows)
    costs = StepCosts.of(base, peak, Overlap.ALL, 16, 2048)
    assert costs.decode(rows, rows * context, distinct) == pytest.approx(work.seconds(peak))


@pytest.mark.parametrize("overlap", list(Overlap))
def test_what_overlaps_is_what_takes_no_time_of_its_own(overlap: Overlap) -> None:
    """By hand: 40 rows over 1,000 keys each and 3 adapters, with a machine for which all parts take seconds."""
    base = held_model(known_models()["smollm2-135m"], "fp32", 4, 4, TARGETS, 2).base
    costs = StepCosts.of(base, Peak(1e9, 1e10), overlap, 16, 2048)
    weights, cache, adapters = base.weight_bytes / 1e9, 40_000 * base.kv_bytes_per_token / 1e9, 3 * 9_768_960 / 1e9
    products = 40 * 2 * (base.body_weights + base.head_weights + 9_768_960 / 2) / 1e10
    attention = 40_000 * base.attention_flops_per_key / 1e10
    assert costs.decode(40, 40_000, 3) == pytest.approx(
        {
            Overlap.ALL: max(weights + cache + adapters, products + attention),
            Overlap.KERNELS: max(weights, products) + max(cache, attention) + adapters,
            Overlap.NONE: weights + cache + adapters + products + attention,
        }[overlap]
    )


@given(tokens=some.integers(1, 5000), chunk=some.integers(16, 2048))
def test_prompts_are_the_benchmarks_floor_where_one_thing_binds(tokens: int, chunk: int) -> None:
    base = held_model(LLAMA, "bf16", 2, 2, TARGETS, 2).base
    for peak in (Peak(1e18, 2e14), Peak(3e12, 1e24)):
        costs = StepCosts.of(base, peak, Overlap.ALL, 16, chunk)
        assert costs.prefill(tokens) == pytest.approx(base.prefill(tokens, chunk, 16).seconds(peak))


def test_tensor_parallel_sums_take_the_link() -> None:
    """Two sums a layer of 8192 numbers in bf16, of which a ring of 4 sends 1.5 times as much one way."""
    one = Accelerator(memory_gb=1, bandwidth_gb_s=1, tflops=1, link_gb_s=900)
    row = 2 * 80 * 8192 * 2 * 1.5
    assert exchange_seconds(one, known_models()["llama-3.1-70b"], 4, 2) == pytest.approx(row / 450e9)
    assert exchange_seconds(one, LLAMA, 1, 2) == 0


questions = some.builds(
    asked,
    gpu=some.sampled_from(sorted(known_accelerators())),
    model=some.sampled_from(["llama-3.1-8b", "llama-3.2-1b", "qwen3-14b", "smollm2-135m"]),
    adapters=some.integers(1, 20_000),
    rank=some.integers(1, 64),
    zipf=some.floats(0, 2),
    rps=some.sampled_from([0.0, 0.5, 20.0, 700.0]),
    prompt_tokens=some.integers(1, 3000),
    output_tokens=some.integers(1, 800),
    weights=some.sampled_from(["bf16", "fp8", "int4"]),
)


def planned(question: Question) -> Plan | None:
    try:
        return make_plan(question)
    except PlanRefused:
        return None


@given(question=questions)
@settings(deadline=None, max_examples=60)
def test_memory_adds_up_and_the_load_is_carried(question: Question) -> None:
    plan = planned(question)
    if plan is None:
        return
    memory, service, replica = plan.memory, plan.service, plan.replica
    assert memory.weights + memory.slack + memory.adapters + memory.kv == pytest.approx(memory.device)
    assert memory.kv_tokens >= question.sequence
    assert 1 <= memory.slots <= memory.host_slots <= question.adapters
    assert memory.slots * memory.adapter <= memory.adapters * (1 + 1e-9)
    assert memory.disk == pytest.approx(question.adapters * memory.adapter)
    assert service.rate <= question.headroom * replica.capacity * (1 + 1e-6)
    assert 0 < service.rows <= replica.most_rows
    assert service.distinct <= min(question.adapters, max(memory.slots, 1)) + 1e-6
    assert replica.hit_device <= replica.hit_host
    if question.rps:
        assert plan.rate == pytest.approx(question.rps)
        # The rows hold as many tokens as come: Little's law with the time a request decodes.
        if service.rows >= 1:
            decoding = question.output_tokens * service.tpot
            assert service.rows == pytest.approx(service.rate * decoding, rel=1e-3)
        if plan.replicas > 1:
            assert plan.limit
    assert plan.floor.decode(10, 1000, 3) <= plan.expected.decode(10, 1000, 3)
    for rows in figures(plan).values():
        for figure in rows:
            assert math.isfinite(figure.value) and figure.value >= 0, figure
            assert figure.how, figure


@given(question=questions, factor=some.floats(1.0, 4.0))
@settings(deadline=None, max_examples=20)
def test_more_of_what_is_needed_never_takes_more_gpus(question: Question, factor: float) -> None:
    """Rates up: no fewer GPUs. Bandwidth and arithmetic up: no more. Longer answers: no fewer."""
    question = replace(question, rps=question.rps or 5.0)
    plan = planned(question)
    if plan is None:
        return
    more = planned(replace(question, rps=question.rps * factor))
    assert more is not None and more.gpus >= plan.gpus
    gpu = question.gpu
    fields = {name: getattr(gpu, name) for name in gpu.__struct_fields__}
    for name in ("bandwidth_gb_s", "tflops", "host_gb_s"):
        fields[name] *= factor
    faster = planned(replace(question, gpu=Accelerator(**fields)))
    assert faster is not None and faster.gpus <= plan.gpus
    longer = planned(replace(question, output_tokens=int(question.output_tokens * factor)))
    # With more GPUs a replica there is more room for rows, which may take fewer in all.
    assert longer is None or longer.memory.gpus > plan.memory.gpus or longer.gpus >= plan.gpus


def test_a_model_that_is_too_large_for_one_gpu_is_shared_by_several() -> None:
    assert make_plan(asked("h100", "llama-3.1-70b", rps=1)).memory.gpus == 2
    assert make_plan(asked("l40s", "llama-3.1-70b", rps=1)).memory.gpus == 4
    plan = make_plan(asked("h100", "llama-3.1-70b", rps=50))
    assert plan.memory.gpus == 4, "two are nearly full of weights"
    assert plan.gpus == 4 * plan.replicas
    assert make_plan(asked(rps=1, tensor_parallel=2)).gpus == 2


def test_an_slo_that_one_gpu_cant_meet_takes_several() -> None:
    alone = make_plan(asked(rps=1)).service.tpot
    assert make_plan(asked(rps=1, slo_tpot=0.7 * alone)).memory.gpus == 2


def test_adapters_limit_the_rows_that_they_fit() -> None:
    """A device with room for 20 of 1,000 that are asked for alike holds rows with no more distinct ones."""
    question = asked(
        "a10g",
        adapters=1000,
        zipf=0.0,
        adapter_memory=20 * 83_886_080.0,
        weights="int4",
        prompt_tokens=50,
        output_tokens=500,
    )
    replica = make_plan(question).replica
    assert replica.memory.slots == 20
    assert replica.distinct(replica.most_rows) <= 20 < replica.distinct(replica.most_rows + 1)
    assert replica.bound() == "adapter memory"


def test_what_limits_is_what_gives_out_first() -> None:
    assert make_plan(asked("h200", rps=500, prompt_tokens=2000, output_tokens=2)).limit == "compute"
    assert (
        make_plan(asked("h200", rps=500, prompt_tokens=10, output_tokens=400, adapters=1, max_running=64)).limit
        == "bandwidth"
    )
    # On 24 GB the weights leave little room.
    assert make_plan(asked("a10g", rps=20, prompt_tokens=1000, adapters=2)).limit == "KV memory"
    assert make_plan(asked("h200", rps=100, slo_tpot=0.008, tensor_parallel=1)).limit == "--slo-tpot-ms"
    assert make_plan(asked("h200", rps=100, slo_ttft=0.15, tensor_parallel=1)).limit == "--slo-ttft-ms"
    slow = asked("h200", adapters=100_000, zipf=0.0, rps=100, host_memory=1e9, store_rate=1e8)
    assert make_plan(slow).limit == "adapter loads"
    assert "nothing yet" in limit_words(make_plan(asked("h200", rps=0.1)))


@pytest.mark.parametrize("name", ["slo_tpot", "slo_ttft"])
def test_an_slo_is_kept(name: str) -> None:
    free = make_plan(asked(rps=200))
    kept = getattr(free.service, name.removeprefix("slo_")) * 0.8
    plan = make_plan(asked(rps=200, **{name: kept}))
    assert getattr(plan.service, name.removeprefix("slo_")) <= kept
    assert plan.gpus > free.gpus


def test_routing_by_adapter_leaves_fewer_distinct_ones_to_each_replica() -> None:
    question = asked("h200", adapters=10_000, rps=300)
    spread, dealt = make_plan(question), make_plan(replace(question, by_adapter=True))
    assert dealt.replica.hit_device > spread.replica.hit_device
    assert dealt.replica.distinct(100) < spread.replica.distinct(100)
    assert dealt.gpus <= spread.gpus


def test_changes_are_plans_of_their_own_that_differ() -> None:
    plan = make_plan(asked(rps=300, prompt_tokens=50, max_running=64))
    found = changes(plan)
    by_name = {change.what: change for change in found}
    assert by_name["weights in fp8"].capacity > 1
    assert by_name["GPU l4"].gpus > plan.gpus
    halved = make_plan(replace(plan.question, rank=8))
    assert by_name["adapters of rank 8"].gpus == halved.gpus
    assert by_name["adapters of rank 8"].capacity == pytest.approx(halved.most_by_gpu / plan.most_by_gpu)
    assert [change.capacity for change in found] == sorted((change.capacity for change in found), reverse=True)


def test_waiting_is_that_of_a_queue_with_one_server() -> None:
    """M/M/1 by hand: with cv = 1 the 95th percentile of the wait is t / (1 - r) · ln(r / 0.05)."""
    question = asked()
    memory = divide(question)[0]
    costs = StepCosts.of(memory.held.base, Peak(4e12, 4e14), Overlap.KERNELS, 16, 2048)
    replica = Replica(question, memory, costs, zipf(1000, 1.0))
    rate = 0.6 / replica.prompt_seconds
    by_hand = replica.prompt_seconds / 0.4 * math.log(0.6 / 0.05)
    assert replica.at(rate).wait == pytest.approx(by_hand, rel=0.05)  # Azure's prompts have cv 0.96
    assert replica.at(0.01 / replica.prompt_seconds).wait == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"adapters": 0}, "--adapters 0"),
        ({"rank": 0}, "--rank 0"),
        ({"rank": 1025}, "--rank 1025: expected 1 to 1,024"),
        ({"zipf": -1.0}, "--zipf -1"),
        ({"rps": float("nan")}, "--rps nan"),
        ({"weights": "int5"}, "did you mean int"),
        ({"dtype": "float16"}, "did you mean bfloat16 or float32?"),
        ({"kv_dtype": "fp9"}, "did you mean fp8"),
        ({"headroom": 0.0}, "--headroom 0"),
        ({"prompt_tokens": 131_000}, "llama-3.1-8b takes 131,072"),
        ({"slo_tpot": 0.0001}, "--slo-tpot-ms 0.1: one request alone on 8 of h200 takes"),
        ({"slo_ttft": 0.001}, "--slo-ttft-ms 1"),
        ({"tensor_parallel": 3}, "--tensor-parallel 3: llama-3.1-8b has 32 heads"),
        ({"adapter_memory": 1e6}, "--adapter-memory 0.001 GB"),
        ({"adapter_memory": 3e12}, "too much for 8 of h200"),
        ({"gpu": "l4", "model": "qwen2.5-72b", "weights": "fp32"}, "--weights int4"),
    ],
)
def test_what_cant_be_planned_says_what_to_do(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanRefused) as refused:
        make_plan(asked(**fields))
    assert told in str(refused.value)


def test_a_rate_that_the_store_cant_follow_is_refused() -> None:
    """A million replicas share the misses; but each that waits for the store waits longer than the SLO."""
    slow = asked(adapters=100_000, zipf=0.0, rps=10, host_memory=1e9, store_rate=1e6, slo_ttft=1.0)
    with pytest.raises(PlanRefused, match="--slo-ttft-ms"):
        make_plan(slow)


def test_attention_only_adapters_are_a_third() -> None:
    whole, attention = make_plan(asked()), make_plan(asked(targets=target_modules("attention")))
    assert attention.memory.adapter / whole.memory.adapter == pytest.approx(0.325, abs=1e-3)


@pytest.mark.parametrize(("gpu", "weights"), [("h100", "bf16"), ("l4", "int4"), ("l40s", "bf16")])
def test_replicas_are_of_as_many_gpus_as_make_the_fewest_in_all(gpu: str, weights: str) -> None:
    """Where weights fill nearly all of one division, hardly a row runs beside them."""
    question = asked(gpu, "llama-3.1-70b", rps=10, weights=weights)
    ways = [make_plan(replace(question, tensor_parallel=memory.gpus)).gpus for memory in divide(question)]
    assert len(ways) in range(2, len(GPUS) + 1)
    assert make_plan(question).gpus == min(ways) < ways[0]


@pytest.mark.parametrize("rps", [1, 10, 40])
@pytest.mark.parametrize("gpu", ["h100", "a100-80gb", "l40s"])
def test_weights_in_fewer_bits_never_take_more_gpus(gpu: str, rps: float) -> None:
    needed = [make_plan(asked(gpu, "llama-3.1-70b", rps=rps, weights=bits)).gpus for bits in ("bf16", "fp8", "int4")]
    assert needed == sorted(needed, reverse=True)
