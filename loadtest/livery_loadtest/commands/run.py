"""`livery bench run`: one workload, or a few, on running servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livery_loadtest.commands import options
from livery_loadtest.commands.ending import ENDS, leave, status, stop
from livery_loadtest.commands.reference import reference
from livery_loadtest.commands.running import FAILURES, Task, find, misfits, parse_targets, run_task
from livery_loadtest.machine import describe_machine
from livery_loadtest.session import Manner
from livery_loadtest.spec import read_workload
from livery_loadtest.target import KEY_ENV

HELP = f"""Send workloads to running servers and report what came back: tables, JSON, one HTML page each.

Servers that want a key get the one in {KEY_ENV}; tenants' keys are in the variables that the workload names. No key is
written down. {ENDS}
"""
LOCAL = "livery=http://127.0.0.1:8000"


def run(
    workload: Annotated[list[Path], typer.Argument(help="YAML files; loadtest/README.md has every field.")],
    target: options.Targets = None,
    repeats: options.Repeats = 3,
    out: options.Out = Path("bench"),
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
    fold: Annotated[bool, typer.Option("--fold", help="Keep less of each request: for runs of hours.")] = False,
) -> None:
    """Run; the command's help is HELP."""
    try:
        workloads = [read_workload(path) for path in workload]
        machine = describe_machine()
        with reference(compare_with, reference_model, reference_adapters) as referee:
            subjects = find(parse_targets(target or [LOCAL], not other_names), adapters, base)
            for misfit in misfits(workloads, subjects).values():
                raise misfit
            manner = Manner(
                repeats=repeats,
                processes=options.fanout(processes),
                verify=verify,
                reference=referee,
                allow_hooks=allow_hooks,
                fold=fold,
            )
            results = run_task(Task(workloads=workloads, subjects=subjects, manner=manner, out=out, machine=machine))
    except FAILURES as failure:
        stop(str(failure))
    leave([status(result, allow_errors) for result in results])
