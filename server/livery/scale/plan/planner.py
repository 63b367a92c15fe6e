"""From a question to a plan: memory, steps, how many GPUs, what they cost, what limits, what would change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from livery.scale.plan.capacity import Replica, Service
from livery.scale.plan.memory import Memory, divide
from livery.scale.plan.popularity import dealt_out, zipf
from livery.scale.plan.question import Question
from livery.scale.plan.refusal import PlanRefused
from livery.scale.plan.roofline import Overlap, StepCosts, exchange_seconds, shared_peak
from livery.scale.plan.shapes import DTYPES

MOST_REPLICAS = 1 << 20


class SloUnmet(PlanRefused):
    """No replica of some number of GPUs meets an SLO, whatever their number."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`replicas` of `memory.gpus` devices each, at `service`; `floor` and `expected` are what steps cost.

    `limit` is what one replica fewer would fail by, or with one replica what the next requests would.
    """

    question: Question
    memory: Memory
    floor: StepCosts
    expected: StepCosts
    replica: Replica
    replicas: int
    service: Service
    limit: str

    @property
    def gpus(self) -> int:
        return self.replicas * self.memory.gpus

    @property
    def rate(self) -> float:
        """Requests a second of all replicas."""
        return self.replicas * self.service.rate

    @property
    def most_by_gpu(self) -> float:
        """Requests a second that a GPU takes within headroom and SLO."""
        replica = self.replica
        most = _most(lambda rate: not replica.fails(rate), self.question.headroom * replica.capacity)
        return most / self.memory.gpus

    @property
    def gpu_hours(self) -> float:
        """GPU-hours for a million tokens of answers, at that rate."""
        return self.gpus / 3600 * 1e6 / (self.rate * self.question.output_tokens)


def make_plan(question: Question) -> Plan:
    """The fewest GPUs that take the rate within the SLO, in replicas of as few as that allows.

    More of them in a replica may be fewer in all: where weights leave little of one, they leave much of two. Without a
    rate it is one replica, on the fewest GPUs that hold the model and meet the SLO with one request, and what it takes.
    Raises PlanRefused where the model fits no 8 GPUs, or no number of them serves the rate within the SLO.
    """
    found: list[Plan] = []
    refused: PlanRefused | None = None
    for memory in divide(question):
        try:
            found.append(_plan(question, memory))
        except PlanRefused as why:
            refused = why
        if found and not question.rps:
            break
    if not found:
        assert refused is not None, "divide gives one at least"
        raise refused
    return min(found, key=lambda plan: plan.gpus)


def _plan(question: Question, memory: Memory) -> Plan:
    """The plan with replicas of that many GPUs. Raises SloUnmet, PlanRefused."""
    exchange = exchange_seconds(question.gpu, question.model, memory.gpus, DTYPES[question.dtype])
    reached = shared_peak(question.gpu, memory.gpus, *question.efficiency)
    serial = Overlap.NONE if question.gpu.kind == "cpu" else Overlap.KERNELS
    floor, expected = (
        StepCosts.of(memory.held.base, peak, overlap, question.rank, question.chunk(question.max_running), exchange)
        for peak, overlap in ((shared_peak(question.gpu, memory.gpus), Overlap.ALL), (reached, serial))
    )
    shares = zipf(question.adapters, question.zipf)

    any_replica = Replica(question, memory, expected, shares)

    def replica_of(replicas: int) -> Replica:
        if not question.by_adapter:
            return any_replica
        return Replica(question, memory, expected, dealt_out(shares, replicas))

    _check_slo(replica_of(MOST_REPLICAS if question.by_adapter else 1))
    if not question.rps:
        one = replica_of(1)
        rate = _most(lambda rate: not one.fails(rate), question.headroom * one.capacity)
        floor = replace(floor, chunk=one.costs.chunk)
        return Plan(question, memory, floor, one.costs, one, 1, one.at(rate), one.fails(rate * 1.02) or one.bound())
    replicas = _fewest(lambda count: not replica_of(count).fails(question.rps / count), question)
    one = replica_of(replicas)
    limit = replica_of(replicas - 1).fails(question.rps / (replicas - 1)) if replicas > 1 else ""
    floor = replace(floor, chunk=one.costs.chunk)
    return Plan(question, memory, floor, one.costs, one, replicas, one.at(question.rps / replicas), limit)


def _check_slo(replica: Replica) -> None:
    """Raises SloUnmet where a request that is alone on a replica doesn't meet it."""
    alone = replica.at(1e-9)
    for option, asked, found in (
        ("--slo-tpot-ms", replica.question.slo_tpot, alone.tpot),
        ("--slo-ttft-ms", replica.question.slo_ttft, alone.ttft),
    ):
        if asked and found > asked:
            raise SloUnmet(
                f"{option} {1e3 * asked:g}: one request alone on {replica.memory.gpus} of {replica.question.gpu.name} "
                f"takes {1e3 * found:.3g} ms; raise it, hold the weights in fewer bits or take a faster GPU"
            )


def _most(holds: Callable[[float], bool], highest: float) -> float:
    """The highest rate that holds, up to `highest`."""
    if holds(highest):
        return highest
    low, high = 0.0, highest
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _fewest(holds: Callable[[int], bool], question: Question) -> int:
    """The fewest replicas that hold, by doubling and halving. Raises PlanRefused where no number does."""
    high = 1
    while not holds(high):
        high *= 2
        if high > MOST_REPLICAS:
            raise PlanRefused(
                f"--rps {question.rps:g}: a million replicas don't serve it; adapters are fetched at --store-gb-s "
                f"{question.store_rate / 1e9:g} and their requests may need more: raise it or --host-memory"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
