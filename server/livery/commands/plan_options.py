"""The options of `livery plan`: what a plan is asked for, and what is simulated beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from livery.commands.plan_simulate import Simulated, policies_of
from livery.scale.plan.accelerators import Accelerator, accelerator
from livery.scale.plan.question import EFFICIENCY, Question
from livery.scale.plan.shapes import DTYPES, NAMED_TARGETS, WEIGHTS, model_shape, target_modules

LOAD, HELD, SPEED, SIM = "The load", "What is held, and how", "Speed and cost", "Simulation of routing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question as it is typed: GB, milliseconds, and names."""

    gpu: Annotated[str, typer.Option(help="h200, l40s, …; FILE.yaml with its numbers; cpu: this machine, measured.")]
    model: Annotated[str, typer.Option(help="llama-3.1-8b, qwen3-32b, …, or the path of a config.json.")]
    adapters: Annotated[int, typer.Option(help="Adapters that are asked for.")]
    rank: Annotated[int, typer.Option(help="Of each adapter.")] = 16
    rps: Annotated[float, typer.Option(help="Requests a second in all; 0: what one replica takes.")] = 0.0
    zipf: Annotated[
        float, typer.Option(help="Exponent of the adapters' popularity; 0: uniform.", rich_help_panel=LOAD)
    ] = 1.0
    prompt_tokens: Annotated[int, typer.Option(help="Mean; Azure's public trace.", rich_help_panel=LOAD)] = 1155
    output_tokens: Annotated[int, typer.Option(help="Mean; Azure's public trace.", rich_help_panel=LOAD)] = 211
    context: Annotated[
        int, typer.Option(help="Tokens of the longest sequence that must fit.", rich_help_panel=LOAD)
    ] = 0
    slo_ttft_ms: Annotated[float, typer.Option(help="95th percentile to the first token.", rich_help_panel=LOAD)] = 0.0
    slo_tpot_ms: Annotated[float, typer.Option(help="Mean time per output token.", rich_help_panel=LOAD)] = 0.0
    targets: Annotated[str, typer.Option(help=f"{', '.join(NAMED_TARGETS)} or modules a,b,…", rich_help_panel=HELD)] = (
        "all-linear"
    )
    weights: Annotated[str, typer.Option(help=", ".join(WEIGHTS), rich_help_panel=HELD)] = "bf16"
    dtype: Annotated[str, typer.Option(help="Of KV cache and embedding: float32, bfloat16.", rich_help_panel=HELD)] = ""
    kv_dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}; as --dtype.", rich_help_panel=HELD)] = ""
    adapter_dtype: Annotated[str, typer.Option(help="Of adapters' files.", rich_help_panel=HELD)] = "bfloat16"
    max_running: Annotated[int, typer.Option(help="Sequences computed together.", rich_help_panel=HELD)] = 256
    adapter_memory: Annotated[
        float,
        typer.Option(help="GB of a replica's device memory; 0: 20 % of what weights leave.", rich_help_panel=HELD),
    ] = 0.0
    host_memory: Annotated[
        float, typer.Option(help="GB of a replica's host memory for adapters; 0: for all.", rich_help_panel=HELD)
    ] = 0.0
    tensor_parallel: Annotated[
        int, typer.Option(help="GPUs that share the model; 0: what takes fewest in all.", rich_help_panel=HELD)
    ] = 0
    by_adapter: Annotated[
        bool, typer.Option("--by-adapter", help="Each adapter's requests go to one replica.", rich_help_panel=HELD)
    ] = False
    store_gb_s: Annotated[float, typer.Option(help="GB/s from disk or store.", rich_help_panel=SPEED)] = 1.0
    bandwidth_efficiency: Annotated[
        float, typer.Option(help=f"Share that is reached; 0: {EFFICIENCY['gpu'][0]} on GPUs.", rich_help_panel=SPEED)
    ] = 0.0
    compute_efficiency: Annotated[
        float, typer.Option(help=f"Share that is reached; 0: {EFFICIENCY['gpu'][1]} on GPUs.", rich_help_panel=SPEED)
    ] = 0.0
    headroom: Annotated[float, typer.Option(help="Of the capacity, how much is used.", rich_help_panel=SPEED)] = 0.8
    price_per_hour: Annotated[float, typer.Option(help="Of one GPU.", rich_help_panel=SPEED)] = 0.0

    def question(self, measured: Callable[[], Accelerator]) -> Question:
        """The question in its own units; `measured` is this machine. Raises PlanRefused."""
        device = measured() if self.gpu.lower() == "cpu" else accelerator(self.gpu)
        return Question(
            gpu=device,
            model=model_shape(self.model),
            adapters=self.adapters,
            rank=self.rank,
            targets=target_modules(self.targets),
            zipf=self.zipf,
            rps=self.rps,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            context=self.context,
            weights=self.weights,
            dtype=self.dtype or ("float32" if device.kind == "cpu" else "bfloat16"),
            kv_dtype=self.kv_dtype,
            adapter_dtype=self.adapter_dtype,
            max_running=self.max_running,
            adapter_memory=1e9 * self.adapter_memory,
            host_memory=1e9 * self.host_memory,
            store_rate=1e9 * self.store_gb_s,
            bandwidth_efficiency=self.bandwidth_efficiency,
            compute_efficiency=self.compute_efficiency,
            headroom=self.headroom,
            slo_ttft=self.slo_ttft_ms / 1e3,
            slo_tpot=self.slo_tpot_ms / 1e3,
            price_per_hour=self.price_per_hour,
            by_adapter=self.by_adapter,
            tensor_parallel=self.tensor_parallel,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Whether requests are played through the plan's replicas, which, and where what came out is written."""

    simulate: Annotated[
        bool, typer.Option("--simulate", help="Play requests through replicas by each policy.", rich_help_panel=SIM)
    ] = False
    replicas: Annotated[int, typer.Option(help="Of the simulation.", rich_help_panel=SIM)] = 64
    requests: Annotated[int, typer.Option(help="Of each policy and load.", rich_help_panel=SIM)] = 60_000
    load: Annotated[
        list[float] | None, typer.Option(help="Share of the capacity; repeatable; 0.8.", rich_help_panel=SIM)
    ] = None
    trace: Annotated[
        str, typer.Option(help="FILE.csv or .csv.gz, in order; conv, code: drawn.", rich_help_panel=SIM)
    ] = "conv"
    policy: Annotated[list[str] | None, typer.Option(help="One of them; repeatable; all.", rich_help_panel=SIM)] = None
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.", rich_help_panel=SIM)] = 0
    out: Annotated[Path | None, typer.Option(help="Write it to this JSON file.", rich_help_panel=SIM)] = None
    plot: Annotated[Path | None, typer.Option(help="Draw it into this SVG file.", rich_help_panel=SIM)] = None

    def simulated(self) -> Simulated:
        """Raises PlanRefused."""
        loads = tuple(self.load or (0.8,))
        return Simulated(self.replicas, self.requests, loads, self.trace, self.seed, policies_of(self.policy or ()))
