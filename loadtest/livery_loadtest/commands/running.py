"""Workloads on targets, from the command line to files: what `run`, `suite` and `capacity` have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from livery_loadtest.build import build_script
from livery_loadtest.commands.ending import own_version
from livery_loadtest.live import LiveBar
from livery_loadtest.machine import Machine
from livery_loadtest.options import Options
from livery_loadtest.origin import Origin
from livery_loadtest.peers import EnvironmentFailed
from livery_loadtest.report import result as documents
from livery_loadtest.report.page import write_page
from livery_loadtest.report.table import print_result
from livery_loadtest.servers import ServerFailed
from livery_loadtest.session import Manner, Served, Stage, find_served, run_session
from livery_loadtest.spec import SpecInvalid, Workload
from livery_loadtest.stopping import stopping
from livery_loadtest.target import Target, TargetUnusable
from livery_loadtest.workers import ClientFailed
from livery_loadtest.writable import check_folder

# What a command ends with, in one line.
FAILURES = (TargetUnusable, SpecInvalid, ServerFailed, EnvironmentFailed, ClientFailed, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Workloads to run on targets, each by itself or `together` in turn; `settings` of targets are for reports."""

    workloads: Sequence[Workload]
    subjects: Sequence[Served]
    manner: Manner
    out: Path
    machine: Machine
    stage: Stage | None = None
    settings: Callable[[], Mapping[str, Mapping[str, str]]] = dict
    together: bool = False

    def __post_init__(self) -> None:
        """Makes the folder. Raises Unwritable."""
        check_folder("--out", self.out)


def run_task(task: Task, title: str = "") -> list[documents.Result]:
    """Run every workload and write its files as soon as it is done; the results of those that ran."""
    results: list[documents.Result] = []
    groups = [task.workloads] if task.together else [[workload] for workload in task.workloads]
    for workloads in groups:
        results += asyncio.run(run_together(task, workloads))
        if any(result.interrupted for result in results):
            break
    if len(results) > 1:
        write_page(results, task.out / "index.html", title)
        Console(stderr=True).print(f"{task.out / 'index.html'} shows all of them", soft_wrap=True)
    return results


async def run_together(task: Task, workloads: Sequence[Workload]) -> list[documents.Result]:
    """Run these in turn, repeat after repeat, and write the files of each.

    Where that is interrupted, a result says so: the last one also where all was measured, and only written yet.
    """
    with stopping() as stop:
        with LiveBar() as bar:
            found = await run_session(workloads, task.subjects, task.manner, bar.begin, task.stage, stop)
        settings = task.settings()
        results = []
        for one in found:
            asked = [subject for subject in task.subjects if subject.takes(one.workload)]
            targets = [_described(subject, settings.get(subject.target.name, {})) for subject in asked]
            origin = Origin.here(own_version(), task.machine)
            result = documents.make_result(one.workload, targets, one.runs, origin, one.verified)
            _write_files(result, task.out, one.workload.name)
            results.append(result)
        if stop.is_set() and not any(result.interrupted for result in results):
            results[-1] = results[-1].stopped()
    return results


def _described(subject: Served, settings: Mapping[str, str]) -> documents.Server:
    """A target as its report shows it."""
    return documents.Server(
        name=subject.target.name,
        url=subject.target.url,
        version=subject.version,
        base=subject.base,
        adapters=subject.adapters,
        settings=dict(settings),
    )


def _write_files(result: documents.Result, out: Path, name: str) -> None:
    """Print a result, and write it as JSON and as a page into the folder."""
    print_result(result, Console())
    documents.write_result(result, out / f"{name}.json")
    write_page([result], out / f"{name}.html")
    Console(stderr=True).print(f"{out / name}.json has all of it, {out / name}.html shows it", soft_wrap=True)


def parse_targets(options: Sequence[str], echoes: bool = True) -> list[Target]:
    """`NAME=URL`, or a URL alone; `echoes` as in Target. Raises ValueError."""
    targets = []
    for option in options:
        name, given, url = option.partition("=")
        named = given and "/" not in name
        targets.append(Target(name if named else "server", url if named else option, echoes=echoes))
    if len({target.name for target in targets}) != len(targets):
        raise ValueError("two targets have the same name; name them apart: --target NAME=URL")
    return targets


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
