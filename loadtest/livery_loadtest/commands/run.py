"""`livery bench run`: one workload, or a few, on running servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from livery_loadtest.build import build_script
from livery_loadtest.commands import options
from livery_loadtest.commands.ending import ENDS, leave, status, stop
from livery_loadtest.commands.reference import reference
from livery_loadtest.commands.running import Task, parse_targets, run_task
from livery_loadtest.machine import describe_machine
from livery_loadtest.options import Options
from livery_loadtest.peers import EnvironmentFailed
from livery_loadtest.servers import ServerFailed
from livery_loadtest.session import Manner, Served, find_served
from livery_loadtest.spec import SpecInvalid, Workload, read_workload
from livery_loadtest.target import KEY_ENV, Target, TargetUnusable

HELP = f"""Send workloads to running servers and report what came back: tables, JSON, one HTML page each.

Servers that want a key get the one in {KEY_ENV}; tenants' keys are in the variables that the workload names. No key is
written down. {ENDS}
"""
LOCAL = "livery=http://127.0.0.1:8000"
FAILURES = (TargetUnusable, SpecInvalid, ServerFailed, EnvironmentFailed, ValueError)


def run(
    workload: Annotated[list[Path], typer.Argument(help="YAML files; loadtest/README.md has every field.")],
    target: options.Targets = None,
    repeats: options.Repeats = 3,
    out: options.Out = Path("bench"),
    processes: options.Processes = 1,
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
                processes=processes,
                verify=verify,
                reference=referee,
                allow_hooks=allow_hooks,
                fold=fold,
            )
            task = Task(
                workloads=workloads,
                subjects=subjects,
                manner=manner,
                out=out,
                machine=machine,
            )
            results = run_task(task)
    except FAILURES as failure:
        stop(str(failure))
    leave([status(result, allow_errors) for result in results])


def find(targets: list[Target], adapters: str = "", base: str | None = None) -> list[Served]:
    """What the servers have to offer. Raises TargetUnusable."""
    names = [name.strip() for name in adapters.split(",") if name.strip()]

    async def ask() -> list[Served]:
        return [await find_served(target, names, base) for target in targets]

    return asyncio.run(ask())


def misfits(workloads: Sequence[Workload], subjects: Sequence[Served]) -> dict[str, SpecInvalid]:
    """Before anything is measured: workload's name -> why it can't be run on one of the servers.

    Raises TargetUnusable where a tenant's key is missing.
    """
    found = {}
    for workload in workloads:
        for subject in subjects:
            Options.of(workload).keys(subject.target)
            try:
                build_script(workload, subject.base, subject.adapters)
            except SpecInvalid as failure:
                found[workload.name] = failure
    return found
