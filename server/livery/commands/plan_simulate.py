"""`livery plan --simulate`: a plan's replicas under a trace, by every routing policy; table, JSON and picture out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery import __version__
from livery.scale.plan.figures import told
from livery.scale.plan.planner import Plan
from livery.scale.plan.refusal import PlanRefused, nearest
from livery.scale.simulation.cluster import play, spec_of
from livery.scale.simulation.load import SHIPPED, make_requests
from livery.scale.simulation.outcome import Outcome
from livery.scale.simulation.pictures import Runs, draw
from livery.scale.simulation.policies import POLICIES, Policy
from livery_loadtest.kinds import MOST_REQUESTS
from livery_loadtest.origin import Origin, document, write_json

SCHEMA = "livery-routing/1"
MOST_REPLICAS = 10_000
WIDE = 136  # columns of a terminal on which all of it fits
FINER = ("coming", "host", "store", "p99", "token p99", "most / mean")


@dataclass(frozen=True, slots=True)
class Simulated:
    """What is simulated beside the plan: loads are shares of the planned capacity."""

    replicas: int
    requests: int
    loads: tuple[float, ...]
    trace: str
    seed: int
    policies: tuple[type[Policy], ...]

    def __post_init__(self) -> None:
        """Raises PlanRefused."""
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise PlanRefused(f"--replicas {self.replicas}: expected 1 to {MOST_REPLICAS:,}")
        if not 10 <= self.requests <= MOST_REQUESTS:
            raise PlanRefused(f"--requests {self.requests}: expected 10 to {MOST_REQUESTS:,}")
        for load in self.loads:
            if not 0 < load <= 2:
                raise PlanRefused(f"--load {load:g}: expected a share of the capacity, above 0 and up to 2")

    @property
    def arrivals(self) -> str:
        """What lengths and gaps are, in words."""
        if self.trace in SHIPPED:
            return f"lengths and gaps drawn from quantiles of Azure's {self.trace} trace of 2023"
        return f"requests of {Path(self.trace).name} in order"


def policies_of(names: Sequence[str]) -> tuple[type[Policy], ...]:
    """The policies of these names, all of them for none. Raises PlanRefused."""
    known = {kind.name: kind for kind in POLICIES}
    for name in names:
        if name not in known:
            raise PlanRefused(f"--policy {name}: unknown; {nearest(name, known)}")
    return tuple(known[name] for name in names) or POLICIES


def simulate(plan: Plan, asked: Simulated, console: Console) -> Runs:
    """Every policy at every load; says on the console how far it is. Raises PlanRefused."""
    question, spec = plan.question, spec_of(plan.replica)
    longest = min(question.model.max_position_embeddings, spec.kv_tokens)
    runs = []
    with console.status("starting", refresh_per_second=1) as status:
        for load in asked.loads:
            rate = load * asked.replicas * plan.replica.capacity
            requests = make_requests(
                asked.trace, asked.requests, rate, question.adapters, question.zipf, longest, asked.seed
            )
            outcomes = []
            for kind in asked.policies:
                status.update(f"{kind.name} at {load:.0%} of the capacity")
                outcomes.append(play(requests, spec, asked.replicas, kind, asked.seed))
            runs.append((load, outcomes))
    return runs


def show_runs(runs: Runs) -> None:
    """A table for each load; on a narrow terminal of what matters most."""
    console = Console()
    for load, outcomes in runs:
        table = Table(title=f"{load:.0%} of the planned capacity", title_justify="left")
        told_of = [_cells(one) for one in outcomes]
        heads = [head for head in told_of[0] if console.width >= WIDE or head not in FINER]
        for head in heads:
            table.add_column(head, justify="left" if head == "policy" else "right")
        for cells in told_of:
            table.add_row(*(cells[head] for head in heads))
        console.print(table)


def _cells(one: Outcome) -> dict[str, str]:
    return {
        "policy": escape(one.policy),
        "on device": f"{one.hit_rate:.1%}",
        "coming": f"{one.found_coming:.1%}",
        "host": f"{one.found_host:.1%}",
        "store": f"{one.found_store:.1%}",
        "TTFT p50": told(one.ttft_p50, "seconds"),
        "p95": told(one.ttft_p95, "seconds"),
        "p99": told(one.ttft_p99, "seconds"),
        "token p50": told(one.tpot_p50, "seconds"),
        "token p99": told(one.tpot_p99, "seconds"),
        "tokens/s": f"{one.throughput:,.0f}",
        "most / mean": f"{one.imbalance:.2f}",
    }


def write_runs(plan: Plan, asked: Simulated, runs: Runs, origin: Origin, out: Path) -> None:
    """Everything as JSON, under the head that all measurements have."""
    question = plan.question
    measured: dict[str, Any] = {
        "gpu": question.gpu.name,
        "model": question.model.name,
        "adapters": question.adapters,
        "rank": question.rank,
        "zipf": question.zipf,
        "replicas": asked.replicas,
        "requests": asked.requests,
        "trace": asked.trace if asked.trace in SHIPPED else Path(asked.trace).name,
        "arrivals": asked.arrivals,
        "seed": asked.seed,
        "capacity_of_a_replica": plan.replica.capacity,
        "slots": plan.memory.slots,
        "host_slots": plan.memory.host_slots,
        "policies": {kind.name: kind.says for kind in asked.policies},
        "runs": [{"load": load, "outcomes": [asdict(one) for one in outcomes]} for load, outcomes in runs],
    }
    write_json(document(SCHEMA, origin, ("numpy",), measured), out)


def draw_runs(plan: Plan, asked: Simulated, runs: Runs, out: Path) -> None:
    """The picture of runs at several loads."""
    question, memory = plan.question, plan.memory
    title = f"{question.adapters:,} adapters on {asked.replicas} replicas: {question.model.name}, {question.gpu.name}"
    under = (
        f"simulated by livery plan {__version__}: rank {question.rank}, Zipf {question.zipf:g}, "
        f"{memory.slots:,} adapters on a device, {memory.host_slots:,} on a host, {asked.arrivals}, "
        f"{asked.requests:,} requests a point"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(draw(runs, title, under), encoding="utf-8")
