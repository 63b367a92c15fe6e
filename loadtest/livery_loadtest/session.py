"""Workloads on targets: found, warmed up, measured in turn, repeat after repeat, and compared with a reference.

Targets and workloads alternate within each repeat (A base, A mixed, B base, B mixed, A base, …), so that a machine that
gets slower or busier meanwhile does so for all of them, and ratios can be taken within a repeat. The first interrupt
ends the run under way and keeps what is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import httpx

from livery_loadtest.build import build_script, build_warm_up
from livery_loadtest.drive import NOT_SENT, Observer
from livery_loadtest.fanout import Fanout
from livery_loadtest.options import Options
from livery_loadtest.record import Health, Record, Run
from livery_loadtest.spec import Workload
from livery_loadtest.stopping import stopping
from livery_loadtest.target import Target, TargetUnusable, key_header, list_models, server_version
from livery_loadtest.verify import Verification, choose, judge, replayed, rivals, suspects
from livery_loadtest.workers import measure

MANAGEMENT_S = 30.0  # how long a server may take to say what it serves
WARM_UP_STREAMS = 8
SAMPLE_S = 1.0
MOST_SUSPECTS = 16  # answers for which other models are asked, too: those that are least like the reference's
MOST_RIVALS = 32  # of these, for each


@dataclass(frozen=True, slots=True)
class Served:
    """A target with what it serves: the base's name, the adapters to spread requests over, what it says it is."""

    target: Target
    base: str
    adapters: tuple[str, ...]
    version: str | None

    @property
    def models(self) -> tuple[str, ...]:
        return (self.base, *self.adapters)

    def takes(self, workload: Workload) -> bool:
        """Whether it is measured with this: a server of the base alone, beside others, isn't asked for adapters."""
        return bool(self.adapters) or workload.base_share == 1


class Stage(Protocol):
    """Brings a target to life before it is asked, and may put the others to sleep."""

    def enter(self, target: str) -> None: ...


class AlwaysOn:
    """The stage for servers somebody else runs: nothing to do."""

    def enter(self, target: str) -> None:
        """Do nothing: every target is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to measure. `verify` answers of each target are asked for again from `reference`, or the target itself."""

    repeats: int = 1
    processes: Fanout = field(default_factory=lambda: Fanout(1))
    verify: int = 0
    reference: Served | None = None
    allow_hooks: bool = False
    fold: bool = False
    sample_s: float = SAMPLE_S


@dataclass(slots=True)
class Measured:
    """What there is of one workload, by target where it is compared."""

    workload: Workload
    runs: list[Run] = field(default_factory=list)
    verified: dict[str, Verification] = field(default_factory=dict)


Begin = Callable[[str, int], Observer]  # told what runs next, and of how many requests; gives who is told of progress


async def find_served(target: Target, adapters: Sequence[str] = (), base: str | None = None) -> Served:
    """Ask a server what it serves; `adapters` and `base` override its list, whose first entry is the base.

    Raises TargetUnusable.
    """
    async with httpx.AsyncClient(timeout=MANAGEMENT_S, headers=key_header(target.key_env), trust_env=False) as client:
        listed = list(target.models) or await list_models(client, target)
        version = await server_version(client, target)
    first = base or listed[0]
    unknown = [name for name in (first, *adapters) if name not in listed]
    if unknown:
        shown = ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
        raise TargetUnusable(f"target {target.name} does not serve {', '.join(unknown)}; it lists {shown}")
    return Served(target, first, tuple(adapters) or tuple(name for name in listed if name != first), version)


async def run_session(
    workloads: Sequence[Workload],
    subjects: Sequence[Served],
    manner: Manner,
    begin: Begin,
    stage: Stage | None = None,
    stop: asyncio.Event | None = None,
) -> list[Measured]:
    """Measure workloads on all subjects; when `stop` is set, or without one at SIGINT or SIGTERM, what is there then.

    A run is then marked interrupted. Failed requests are in the records. Raises SpecInvalid where a workload doesn't
    fit what a subject serves, TargetUnusable where one can't be asked, ClientFailed.
    """
    if stop is None:
        with stopping() as stop:
            return await run_session(workloads, subjects, manner, begin, stage, stop)
    stage = stage or AlwaysOn()
    measured = [Measured(workload) for workload in workloads]
    for repeat in range(manner.repeats):
        for subject in subjects:
            stage.enter(subject.target.name)
            for one in measured:
                if not subject.takes(one.workload):
                    continue
                run = await _run_once(one.workload, subject, repeat, manner, begin, stop)
                if run.records or not run.interrupted or all(done.target != run.target for done in one.runs):
                    one.runs.append(run)
                if manner.verify and repeat + 1 == manner.repeats and not run.interrupted:
                    verified = await _verify(one.workload, subject, run.records, manner, begin, stop)
                    if verified.compared or not stop.is_set():
                        one.verified[subject.target.name] = verified
                if run.interrupted or stop.is_set():
                    one.runs[-1] = replace(one.runs[-1], interrupted=True)
                    return measured
    return measured


async def _run_once(
    workload: Workload, subject: Served, repeat: int, manner: Manner, begin: Begin, stop: asyncio.Event
) -> Run:
    """Warm up, and measure. Where the first is interrupted, it is what there is, with nothing measured.

    A run whose client turned out too busy is made anew from more processes, with other prompts: those that were asked
    once may be in the server's cache. Where that is interrupted, the one before it is what there is.
    """
    target = subject.target
    warm_up = build_warm_up(workload, subject.base, subject.adapters, repeat)
    if warm_up.requests:
        observer = begin(f"{target.name}, {workload.name}, warm-up", len(warm_up.requests))
        streams = min(WARM_UP_STREAMS, len(warm_up.requests))
        options = replace(Options.of(workload, repeat=repeat), streams=streams, duration_s=0.0)
        warmed = await measure(warm_up, target, options, observer=observer, stop=stop)
        if warmed.interrupted:
            return replace(warmed, records=())
    options = Options.of(workload, repeat=repeat, keep_text=bool(manner.verify), fold=manner.fold)
    what = f"{target.name}, {workload.name}, {repeat + 1} of {manner.repeats}"
    anew: list[str] = []
    doubted: Run | None = None
    processes = 0
    while True:
        script = build_script(workload, subject.base, subject.adapters, repeat, attempt=len(anew))
        processes = processes or manner.processes.first(script, options)
        observer = begin(f"{what}, anew from {processes} processes" if anew else what, len(script.requests))
        run = await measure(
            script,
            target,
            options,
            processes=processes,
            observer=observer,
            sample_s=manner.sample_s,
            allow_hooks=manner.allow_hooks,
            stop=stop,
        )
        if run.interrupted and doubted is not None:
            return replace(doubted, interrupted=True)
        more = manner.processes.more(script, options, run)
        if not more:
            return replace(run, health=replace(run.health, anew=tuple(anew)))
        anew.append(_too_few(run.health))
        doubted, processes = run, more


def _too_few(health: Health) -> str:
    """Why a run was thrown away."""
    who = "the client's one process" if health.processes == 1 else f"one of {health.processes} client processes"
    return f"{who} used {health.cpu_share:.0%} of a core"


async def _verify(
    workload: Workload, subject: Served, records: Sequence[Record], manner: Manner, begin: Begin, stop: asyncio.Event
) -> Verification:
    """Ask the reference for a sample's answers; for those that differ, also what their rivals say.

    When that is stopped, those that were asked for by then: where rivals are missing, an answer isn't looked into.
    """
    reference = manner.reference or subject
    chosen = choose(records, manner.verify, workload.seed)
    ask = partial(_ask_again, workload, subject, reference, begin, stop)
    answers = await ask([(record, [record.planned.model]) for record in chosen])
    chosen = chosen[: len(answers)]
    doubted = suspects(chosen, answers)[:MOST_SUSPECTS]
    asked = [(record, rivals(record, records, MOST_RIVALS, subject.base)) for record in doubted]
    said = await ask(asked)
    others: dict[int, dict[str, Record]] = {}
    for record, models in asked:
        if len(models) <= len(said):
            others[record.planned.index] = dict(zip(models, said, strict=False))
            said = said[len(models) :]
    compared = tuple(
        judge(record, answer, others.get(record.planned.index)) for record, answer in zip(chosen, answers, strict=True)
    )
    name = f"{subject.target.name}, quiet" if reference is subject else reference.target.name
    return Verification(name, len({record.planned.model for record in chosen}), compared)


async def _ask_again(
    workload: Workload,
    subject: Served,
    reference: Served,
    begin: Begin,
    stop: asyncio.Event,
    asked: Sequence[tuple[Record, Sequence[str]]],
) -> Sequence[Record]:
    """Requests once more, one at a time, where nothing else is asked for; when that is stopped, the first of them."""
    script = replayed(asked)
    if not script.requests:
        return ()
    options = replace(Options.of(workload, keep_text=True), streams=1, duration_s=0.0)
    if reference is not subject:  # it has one key or none, and calls the base by a name of its own
        names = {subject.base: reference.base}
        requests = [replace(one, tenant=None, model=names.get(one.model, one.model)) for one in script.requests]
        script, options = replace(script, requests=requests), replace(options, key_envs={})
    observer = begin(f"{subject.target.name}: answers of {reference.target.name}, quiet", len(script.requests))
    run = await measure(script, reference.target, options, observer=observer, stop=stop)
    if run.interrupted:
        return run.records  # one after the other: those that are there come before those that aren't
    found = {record.planned.index: record for record in run.records}
    why = "; ".join(run.health.reasons)  # the process that asked ended midway
    return [
        found.get(planned.index) or Record(planned, 0.0, error=NOT_SENT, error_message=why)
        for planned in script.requests
    ]
