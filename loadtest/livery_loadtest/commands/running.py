"""Workloads on targets, from the command line to files: what `run`, `suite` and `capacity` have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from livery_loadtest.commands.ending import own_version
from livery_loadtest.live import LiveBar
from livery_loadtest.machine import Machine
from livery_loadtest.origin import Origin
from livery_loadtest.report import result as documents
from livery_loadtest.report.page import write_page
from livery_loadtest.report.table import print_result
from livery_loadtest.session import Manner, Served, Stage, run_session
from livery_loadtest.spec import Workload
from livery_loadtest.target import Target


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


def run_task(task: Task, title: str = "") -> list[documents.Result]:
    """Run every workload and write its files as soon as it is done; the results of those that ran."""
    results: list[documents.Result] = []
    groups = [task.workloads] if task.together else [[workload] for workload in task.workloads]

    for workloads in groups:
        with LiveBar() as bar:
            found = asyncio.run(run_session(workloads, task.subjects, task.manner, bar.begin, task.stage))
        settings = task.settings()
        targets = [described(subject, settings.get(subject.target.name, {})) for subject in task.subjects]
        for one in found:
            origin = Origin.here(own_version(), task.machine)
            result = documents.make_result(one.workload, targets, one.runs, origin, one.verified)
            write_files(result, task.out, one.workload.name)
            results.append(result)
        if any(result.interrupted for result in results):
            break
    if len(results) > 1:
        write_page(results, task.out / "index.html", title)
        Console(stderr=True).print(f"{task.out / 'index.html'} shows all of them", soft_wrap=True)
    return results


def described(subject: Served, settings: Mapping[str, str]) -> documents.Server:
    """A target as its report shows it."""
    return documents.Server(
        name=subject.target.name,
        url=subject.target.url,
        version=subject.version,
        base=subject.base,
        adapters=subject.adapters,
        settings=dict(settings),
    )


def write_files(result: documents.Result, out: Path, name: str) -> None:
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
