"""`livery plan`: how many GPUs a number of adapters and a rate of requests take, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery import __version__
from livery.commands.asking import CommandFailed
from livery.commands.plan_options import Asked, Simulation
from livery.commands.plan_simulate import draw_runs, show_runs, write_runs
from livery.commands.plan_simulate import simulate as run_simulation
from livery.scale.plan.accelerators import Accelerator
from livery.scale.plan.changes import Change, changes
from livery.scale.plan.figures import number
from livery.scale.plan.planner import Plan, make_plan
from livery.scale.plan.refusal import PlanRefused
from livery.scale.plan.told import Sections, figures, limit_words
from livery_loadtest.origin import Origin
from livery_loadtest.writable import Unwritable, check_file, told_as

SCHEMA = "livery-plan/1"
LAYOUTS = ("fp32", "bf16", "int8", "int4")  # that the own engine holds on a CPU
# How weights of fewer bits are asked for on GPUs. vLLM makes no int8 ones: the checkpoint has them.
QUANTIZED = {"fp8": "torchao-fp8", "int8": "torchao-int8", "int4": "torchao-int4"}
VLLM_QUANTIZED = {"fp8": "fp8", "int4": "bitsandbytes"}


def plan(
    asked: Asked,
    simulation: Simulation,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many GPUs it takes, what limits them, what it costs, and what would change that.

    From numbers alone: nothing is measured, but for this machine with --gpu cpu.

    Every number comes with its formula. They are worked out in server/livery/scale/plan/README.md, which also has
    them beside measurements. `floor` is physics; `expected` counts with --bandwidth-efficiency and
    --compute-efficiency, which `livery bench engine` tells for your own machine.
    """
    if not simulation.simulate and (simulation.out or simulation.plot):
        raise CommandFailed("--out and --plot are of the simulation: add --simulate, or take --json for the plan")
    try:
        found = make_plan(asked.question(this_machine))
        if simulation.simulate:
            _simulate(found, simulation, as_json)
            return
    except (PlanRefused, Unwritable) as refused:
        raise CommandFailed(str(refused)) from None
    others = changes(found)
    if as_json:
        typer.echo(json.dumps(document(found, others), indent=1))
    else:
        show(found, others)


def _simulate(found: Plan, simulation: Simulation, as_json: bool) -> None:
    """Play it and tell; a picture needs two loads. Raises PlanRefused."""
    asked, out, plot = simulation.simulated(), simulation.out, simulation.plot
    if plot is not None and len(asked.loads) < 2:
        raise PlanRefused("--plot draws over the load: give --load twice or more, as in --load 0.5 --load 0.8")
    check_file("--out", out)
    check_file("--plot", plot)
    origin = Origin.here(__version__)
    runs = run_simulation(found, asked, Console(stderr=True))
    if as_json:
        outcomes = [{"load": load, "outcomes": [asdict(one) for one in some]} for load, some in runs]
        typer.echo(json.dumps(outcomes, indent=1))
    else:
        show_runs(runs)
    if out is not None:
        with told_as("--out", out):
            write_runs(found, asked, runs, origin, out)
    if plot is not None:
        with told_as("--plot", plot):
            draw_runs(found, asked, runs, plot)


def this_machine() -> Accelerator:
    """This machine's memory, and what it reads and computes at best; takes seconds, and torch."""
    import torch

    from livery import host
    from livery.bench.machine import measure_peak
    from livery.engine.kernels import load

    torch.set_num_threads(host.cores())
    peak = measure_peak(torch.device("cpu"), load("auto"))
    return Accelerator(
        name="cpu",
        kind="cpu",
        memory_gb=host.memory().available / 1e9,
        bandwidth_gb_s=peak.bandwidth / 1e9,
        tflops=peak.flops / 1e12,
        source="measured now: a streaming read, an fp32 product",
    )


def document(found: Plan, others: list[Change]) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "schema": SCHEMA,
        "gpu": msgspec.structs.asdict(found.question.gpu),
        "model": found.question.model.name,
        "gpus": found.gpus,
        "limit": found.limit,
        "limit_in_words": limit_words(found),
        "serve": serve_options(found),
        "figures": {title: [asdict(one) for one in rows] for title, rows in figures(found).items()},
        "changes": [asdict(change) for change in others],
    }


def show(found: Plan, others: list[Change]) -> None:
    """The plan as tables."""
    console = Console()
    asked = found.question
    sections: Sections = figures(found)
    table = Table(
        title=f"{asked.model.name} with {asked.adapters:,} adapters on {asked.gpu.name}", title_justify="left"
    )
    for column, justify in (("what", "left"), ("value", "right"), ("how", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for heading, rows in sections.items():
        table.add_section()
        table.add_row(f"[bold]{escape(heading)}[/]", "", "")
        for one in rows:
            table.add_row(escape(one.name), escape(str(one)), f"[dim]{escape(one.how)}[/]")
    console.print(table)
    console.print(f"[bold]{found.gpus:,} GPUs.[/] What limits: {escape(limit_words(found))}.", highlight=False)
    console.print(f"livery serve {escape(serve_options(found))}", highlight=False)
    if others:
        console.print(_changes(found, others))


def serve_options(found: Plan) -> str:
    """How a replica is told to divide its memory so."""
    memory, asked, rows = found.memory, found.question, found.replica.most_rows
    fp8_keys = asked.gpu.kind == "gpu" and asked.kv_dtype == "fp8"
    if memory.gpus > 1 or fp8_keys:
        slots = min(memory.slots, rows)
        options = [
            "--engine vllm",
            f"--kv-memory {memory.kv / memory.gpus:.0f}",  # of each GPU, as vLLM counts
            f"--max-running {rows}",
            f"--max-loras {slots}",
            f"--max-lora-rank {asked.rank}",
            f"--max-cpu-loras {max(slots, memory.host_slots)}",
        ]
        if memory.gpus > 1:
            options.append(f"--vllm-arg=tensor_parallel_size={memory.gpus}")
        if fp8_keys:
            options.append("--vllm-arg=kv_cache_dtype=fp8")
        if asked.weights in VLLM_QUANTIZED:
            options.append(f"--vllm-arg=quantization={VLLM_QUANTIZED[asked.weights]}")
        return " ".join(options)
    options = [
        f"--kv-memory {memory.kv:.0f}",
        f"--adapter-memory {memory.adapters:.0f}",
        f"--host-adapter-memory {memory.host:.0f}",
        f"--max-running {rows}",
    ]
    if asked.gpu.kind == "cpu" and asked.weights in LAYOUTS:
        options.append(f"--weights {asked.weights}")
    elif asked.weights in QUANTIZED:
        options.append(f"--quantization {QUANTIZED[asked.weights]}")
    return " ".join(options)


def _changes(found: Plan, others: list[Change]) -> Table:
    table = Table(title="What would change it", title_justify="left")
    for column in ("one thing other", "GPUs", "requests/s", "a GPU takes, times this", "then limits"):
        table.add_column(column, overflow="fold")
    for change in others:
        numbers = (f"{change.gpus:,}", number(change.rate), f"{change.capacity:.2f}")
        table.add_row(escape(change.what), *numbers, escape(change.limit or "nothing yet"))
    return table
