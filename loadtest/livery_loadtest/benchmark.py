"""One run: warm up, then rounds of scenarios over the targets in turn, then the value check.

Targets and scenarios alternate within each round (A base, A mixed, B base, B mixed, A base, ...), so that a
machine that gets slower or busier meanwhile does so for all of them, and ratios are taken within a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import httpx

from livery_loadtest.check import CheckResult, check_request_count, check_target, compare_targets
from livery_loadtest.client import Dialect, Record, http_client, send
from livery_loadtest.closed_loop import closed_loop
from livery_loadtest.target import Target, TargetUnusable, list_models, server_version
from livery_loadtest.workload import Phase, Scenario, Workload, round_requests


@dataclass(frozen=True, slots=True)
class Subject:
    """A target with what it serves: the base's name and the adapters to spread requests over."""

    target: Target
    base: str
    adapters: tuple[str, ...]
    version: str | None

    @property
    def models(self) -> tuple[str, ...]:
        return (self.base, *self.adapters)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, apart from the load of one round."""

    rounds: int = 3
    warm_up_requests: int = 16
    scenarios: tuple[Scenario, ...] = (Scenario.BASE, Scenario.MIXED)
    dialect: Dialect = field(default_factory=Dialect)
    check: bool = False
    timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario on one target in one round."""

    round: int
    subject: Subject
    scenario: Scenario


@dataclass(frozen=True, slots=True)
class CellResult:
    """A measured cell and its records, in the order the requests were sent."""

    cell: Cell
    records: tuple[Record, ...]


@dataclass(slots=True)
class Outcome:
    """Everything a run found, in the order it was measured."""

    subjects: tuple[Subject, ...]
    cells: list[CellResult] = field(default_factory=list)
    warm_up_errors: dict[str, int] = field(default_factory=dict)
    checks: list[CheckResult] = field(default_factory=list)


class Stage(Protocol):
    """Brings a target to life before it is asked, and may put the others to sleep."""

    def enter(self, target: str) -> None: ...


class Watcher(Protocol):
    """Told of progress: what is being run, and each finished request."""

    def begin(self, what: str) -> None: ...

    def advance(self) -> None: ...


async def find_subjects(
    targets: Sequence[Target],
    adapters: Sequence[str],
    timeout: float,
    base: str | None = None,
    api_key: str | None = None,
) -> tuple[Subject, ...]:
    """Ask each target what it serves; `adapters` and `base` override its list, whose first entry is the base.

    A target without adapters is measured on the base alone. Raises TargetUnusable.
    """
    async with http_client(timeout, api_key) as client:
        return tuple([await _find_subject(client, target, adapters, base) for target in targets])


async def _find_subject(
    client: httpx.AsyncClient, target: Target, adapters: Sequence[str], base: str | None
) -> Subject:
    served = list(target.models) or await list_models(client, target)
    first = base or served[0]
    others = [name for name in served if name != first]
    unknown = [name for name in (first, *(adapters if others else ())) if name not in served]
    if unknown:
        raise TargetUnusable(f"target {target.name} does not serve {', '.join(unknown)}; it lists {', '.join(served)}")
    chosen = [name for name in adapters if name in served] if adapters else others
    return Subject(target, first, tuple(chosen), await server_version(client, target))


def interleave(rounds: int, subjects: Sequence[Subject], scenarios: Sequence[Scenario]) -> list[Cell]:
    """The order of measurement: within every round, each target's scenarios one after the other."""
    return [
        Cell(index, subject, scenario)
        for index in range(rounds)
        for subject in subjects
        for scenario in scenarios
        if scenario is not Scenario.MIXED or subject.adapters
    ]


def request_count(subjects: Sequence[Subject], plan: Plan, workload: Workload) -> int:
    """All requests of a run: warm-up, rounds and check."""
    short = replace(workload, requests=plan.warm_up_requests)
    total = sum(workload.under(cell.scenario).requests for cell in interleave(plan.rounds, subjects, plan.scenarios))
    total += sum(short.under(cell.scenario).requests for cell in interleave(1, subjects, plan.scenarios))
    if plan.check:
        total += sum(check_request_count(len(subject.models), workload) for subject in subjects)
    return total


class Benchmark:
    """Runs a plan against its subjects; `stage` is entered before each target's turn."""

    def __init__(
        self,
        subjects: tuple[Subject, ...],
        plan: Plan,
        workload: Workload,
        stage: Stage,
        watcher: Watcher,
        api_key: str | None = None,
    ) -> None:
        self.plan = plan
        self.workload = workload
        self.stage = stage
        self.watcher = watcher
        self.api_key = api_key
        self.outcome = Outcome(subjects)

    async def run(self) -> Outcome:
        """Measure everything; failed requests are in the outcome, never raised."""
        async with http_client(self.plan.timeout, self.api_key) as client:
            await self._warm_up(client)
            for cell in interleave(self.plan.rounds, self.outcome.subjects, self.plan.scenarios):
                name = f"{cell.subject.target.name} {cell.scenario} {cell.round + 1}/{self.plan.rounds}"
                records = await self._load(client, cell, Phase.MEASURED, self.workload, name)
                self.outcome.cells.append(CellResult(cell, tuple(records)))
            if self.plan.check:
                await self._check(client)
        return self.outcome

    async def _warm_up(self, client: httpx.AsyncClient) -> None:
        if not self.plan.warm_up_requests:
            return
        short = replace(self.workload, requests=self.plan.warm_up_requests)
        for cell in interleave(1, self.outcome.subjects, self.plan.scenarios):
            name = f"{cell.subject.target.name} {cell.scenario} warm-up"
            records = await self._load(client, cell, Phase.WARM_UP, short, name)
            errors = sum(record.error is not None for record in records)
            if errors:
                self.outcome.warm_up_errors[f"{cell.subject.target.name}/{cell.scenario}"] = errors

    async def _load(
        self, client: httpx.AsyncClient, cell: Cell, phase: Phase, workload: Workload, name: str
    ) -> list[Record]:
        subject, workload = cell.subject, workload.under(cell.scenario)
        self._enter(subject, name)
        requests = round_requests(workload, cell.scenario, subject.base, subject.adapters, phase, cell.round)
        sender = partial(send, client, subject.target, self.plan.dialect)
        return await closed_loop(sender, requests, workload.streams, self.watcher.advance)

    async def _check(self, client: httpx.AsyncClient) -> None:
        results: list[CheckResult] = []
        for subject in self.outcome.subjects:
            name = subject.target.name
            self._enter(subject, f"{name} value check")
            sender = partial(send, client, subject.target, self.plan.dialect)
            results.append(await check_target(name, sender, subject.models, self.workload, self.watcher.advance))
        labels = {subject.target.name: subject.models for subject in self.outcome.subjects}
        self.outcome.checks = compare_targets(results, labels)

    def _enter(self, subject: Subject, what: str) -> None:
        self.watcher.begin(what)
        self.stage.enter(subject.target.name)


class AlwaysOn:
    """The stage for servers somebody else runs: nothing to do."""

    def enter(self, target: str) -> None:
        """Do nothing: every target is up."""
