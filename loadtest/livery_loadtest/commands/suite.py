"""`livery bench suite`: the workloads that come with this package, on one server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from livery_loadtest.commands import options
from livery_loadtest.commands.ending import ENDS, leave, status, stop
from livery_loadtest.commands.reference import reference
from livery_loadtest.commands.running import FAILURES, Task, find, misfits, parse_targets, run_task
from livery_loadtest.machine import describe_machine
from livery_loadtest.session import Manner
from livery_loadtest.spec import SpecInvalid
from livery_loadtest.suites import Suite, suite, suite_names

LONG_MINUTES = 60  # a suite that takes longer keeps less of each request
NAMES = ", ".join(suite_names())
HELP = f"""Run a suite on a server: {NAMES}.

Every workload is written as soon as it is done. {ENDS}
"""


def run_suite(
    name: Annotated[str, typer.Argument(help=NAMES)],
    url: Annotated[str, typer.Option(help="The server; or NAME=URL.")] = "http://127.0.0.1:8000",
    out: options.Out = Path("bench"),
    capacity: Annotated[
        float, typer.Option(min=0, help="Requests a second that the server completes when full; rates follow it.")
    ] = 0.0,
    lengths: Annotated[float, typer.Option(min=0, help="Prompts and answers are this many times as long.")] = 0.0,
    time: Annotated[float, typer.Option(min=0.001, help="All takes this many times as long.")] = 1.0,
    repeats: options.Repeats = 1,
    processes: options.Processes = "auto",
    adapters: options.Adapters = "",
    base: options.Base = None,
    verify: options.Verify = 0,
    compare_with: options.Reference = None,
    reference_model: options.ReferenceModel = "smollm2-135m-instruct",
    reference_adapters: options.ReferenceAdapters = None,
    other_names: options.OtherNames = False,
    allow_errors: options.AllowErrors = False,
    allow_hooks: options.AllowHooks = False,
) -> None:
    """Run; the command's help is HELP."""
    try:
        chosen = suite(name, capacity, lengths, time)
        machine = describe_machine()
        with reference(compare_with, reference_model, reference_adapters) as referee:
            subjects = find(parse_targets([url], not other_names), adapters, base)
            left_out = misfits(chosen.workloads, subjects)
            workloads = [workload for workload in chosen.workloads if workload.name not in left_out]
            _announce(chosen, left_out, repeats)
            if not workloads:
                stop(f"suite {name}: none of its workloads can be run on this server")
            manner = Manner(
                repeats=repeats,
                processes=options.fanout(processes),
                verify=verify,
                reference=referee,
                allow_hooks=allow_hooks,
                fold=chosen.minutes > LONG_MINUTES,
            )
            task = Task(workloads=workloads, subjects=subjects, manner=manner, out=out, machine=machine)
            results = run_task(task, chosen.name)
    except FAILURES as failure:
        stop(str(failure))
    leave([status(result, allow_errors) for result in results])


def _announce(chosen: Suite, left_out: Mapping[str, SpecInvalid], repeats: int) -> None:
    console = Console(stderr=True)
    minutes = chosen.minutes * repeats
    console.print(f"[bold]{chosen.name}[/]: {len(chosen.workloads)} workloads, about {minutes:.0f} min. {chosen.notes}")
    for name, why in left_out.items():
        console.print(f"[yellow]{escape(name)} is left out: {escape(str(why))}[/]", soft_wrap=True)
