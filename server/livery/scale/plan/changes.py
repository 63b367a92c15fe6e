"""What would change a plan: the same question with one thing other, planned again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from livery.scale.plan.accelerators import known_accelerators
from livery.scale.plan.planner import Plan, make_plan
from livery.scale.plan.question import Question
from livery.scale.plan.refusal import PlanRefused
from livery.scale.plan.shapes import NAMED_TARGETS

SAME = 0.01  # a capacity that differs by less is no change


@dataclass(frozen=True, slots=True)
class Change:
    """One thing other: the GPUs that takes, and the requests a second that one of them takes, over the plan's."""

    what: str
    gpus: int
    rate: float
    capacity: float
    limit: str


def changes(plan: Plan) -> list[Change]:
    """What makes a difference, what serves most first; what can't be planned is left out."""
    found = []
    for what, question in _others(plan.question):
        try:
            other = make_plan(question)
        except PlanRefused:
            continue
        capacity = other.most_by_gpu / plan.most_by_gpu
        if abs(capacity - 1) >= SAME or other.gpus != plan.gpus:
            found.append(Change(what, other.gpus, other.rate, capacity, other.limit))
    return sorted(found, key=lambda change: -change.capacity)


def _others(question: Question) -> Iterator[tuple[str, Question]]:
    if question.weights in ("fp32", "bf16"):
        bits = "int8" if question.gpu.kind == "cpu" else "fp8"
        yield f"weights in {bits}", replace(question, weights=bits)
        yield "weights in int4", replace(question, weights="int4")
    if question.gpu.kind == "gpu" and question.kv_dtype != "fp8":
        yield "keys and values in fp8", replace(question, kv_dtype="fp8")
    if question.rank > 1:
        yield f"adapters of rank {question.rank // 2}", replace(question, rank=question.rank // 2)
    if set(question.targets) - set(NAMED_TARGETS["attention"]):
        yield "adapters on attention only", replace(question, targets=NAMED_TARGETS["attention"])
    if not question.tensor_parallel and question.gpu.kind == "gpu":
        for gpus in (2, 4, 8):
            yield f"{gpus} GPUs a replica", replace(question, tensor_parallel=gpus)
    if not question.by_adapter:
        yield "each adapter's requests to one replica", replace(question, by_adapter=True)
    yield "answers half as long", replace(question, output_tokens=max(1, question.output_tokens // 2))
    yield "prompts half as long", replace(question, prompt_tokens=max(1, question.prompt_tokens // 2))
    if question.slo_tpot or question.slo_ttft:
        yield "no SLO", replace(question, slo_tpot=0.0, slo_ttft=0.0)
    if question.gpu.kind == "gpu":
        for name, one in known_accelerators().items():
            if name != question.gpu.name:
                yield f"GPU {name}", replace(question, gpu=one, tensor_parallel=0)
