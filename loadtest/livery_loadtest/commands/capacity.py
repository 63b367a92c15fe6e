"""`livery bench capacity`: the highest rate at which a server still meets an SLO."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from livery_loadtest.capacity import WITHIN, Capacity, Trial, find_capacity, pace
from livery_loadtest.commands import options
from livery_loadtest.commands.ending import ENDS, Exit, leave, status, stop
from livery_loadtest.commands.run import LOCAL
from livery_loadtest.commands.running import FAILURES, Task, find, misfits, parse_targets, run_together
from livery_loadtest.kinds import Gamma, Poisson, Trace, Turns
from livery_loadtest.lengths import Side, lengths
from livery_loadtest.machine import describe_machine
from livery_loadtest.report.page import write_page
from livery_loadtest.report.result import Result, write_result
from livery_loadtest.session import Manner
from livery_loadtest.spec import SpecInvalid, Workload, read_workload

INTERRUPTED = "interrupted"
TRIAL_S = 20.0
HELP = f"""Search the highest rate at which enough requests meet an SLO, by doubling and halving.

Every rate is a run of the workload, whose arrivals are Poisson unless it says gamma; the one that is found is
run once more. A run in which the client was the bottleneck, a request failed, or the server completed fewer requests a
second than came, doesn't hold. Each run is written by
itself, and the search as NAME.json and NAME.html: what was tried, and the run at the rate that was found. Where no rate
holds, the exit status is 1. {ENDS}
"""


def capacity(
    workload: Annotated[Path, typer.Argument(help="A YAML file with `slo`, or give one by options.")],
    target: Annotated[str, typer.Option(help="NAME=URL of a running server.")] = LOCAL,
    first: Annotated[float, typer.Option(min=0.001, help="Requests a second to begin with.")] = 1.0,
    ceiling: Annotated[float, typer.Option(min=0.001, help="Requests a second that are enough.")] = 1000.0,
    share: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of all requests, how many must meet it.")] = 0.95,
    within: Annotated[float, typer.Option(min=1.001, help="How near the answer is to the lowest that fails.")] = WITHIN,
    trial_s: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Seconds over which a rate's requests come at least: a workload's `requests` grow with the rate. Many "
            "times what an answer takes.",
        ),
    ] = TRIAL_S,
    slo_ttft_ms: Annotated[float | None, typer.Option(min=0.0, help="In place of the workload's.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(min=0.0, help="In place of the workload's.")] = None,
    slo_e2e_ms: Annotated[float | None, typer.Option(min=0.0, help="In place of the workload's.")] = None,
    processes: options.Processes = "auto",
    adapters: options.Adapters = "",
    base: options.Base = None,
    out: options.Out = Path("bench-capacity"),
) -> None:
    """Search; the command's help is HELP."""
    try:
        given = {"ttft_ms": slo_ttft_ms, "tpot_ms": slo_tpot_ms, "e2e_ms": slo_e2e_ms}
        asked = with_slo(read_workload(workload), {name: value for name, value in given.items() if value is not None})
        (subject,) = find(parse_targets([target]), adapters, base)
        for misfit in misfits([asked], [subject]).values():
            raise misfit
        manner = Manner(processes=options.fanout(processes))
        task = Task(workloads=[asked], subjects=[subject], manner=manner, out=out, machine=describe_machine())
        search = Search(task, share, trial_s)
        found = asyncio.run(find_capacity(search.trial, first, ceiling, within))
    except FAILURES as failure:
        stop(str(failure))
    Console().print(trial_table(found, asked))
    search.write(found)
    ends = [status(result, allow_errors=True) for result in search.results[-1:]]
    leave([*ends, *([without_a_rate(search.results)] if found.highest is None else [])])


def without_a_rate(results: Sequence[Result]) -> Exit:
    """How a search ends in which no rate held: what no run can tell of the server isn't the server's failing."""
    doubtful = all(result.doubts and not any(one.failed for one in result.summary) for result in results)
    return Exit.INVALID if doubtful else Exit.FAILED


def with_slo(workload: Workload, bounds: dict[str, float]) -> Workload:
    """The workload with these bounds in place of its own. Raises SpecInvalid where none is left."""
    slo = msgspec.structs.replace(workload.slo, **bounds)
    if not (slo.ttft_ms or slo.tpot_ms or slo.e2e_ms):
        raise SpecInvalid(f"{workload.name} has no `slo`: give --slo-ttft-ms, --slo-tpot-ms or --slo-e2e-ms")
    return msgspec.structs.replace(workload, slo=slo)


def at_rate(workload: Workload, rate: float, trial_s: float) -> Workload:
    """The workload with `rate` requests, or conversations, a second, which come for `trial_s` seconds at least.

    What ends a run after a number of requests would be over in no time at a high rate, and measure a burst. Raises
    SpecInvalid for a replayed trace, whose rate is its own.
    """
    arrivals = workload.arrivals
    if isinstance(arrivals, Trace):
        raise SpecInvalid(f"{workload.name}: a trace has its own times; give arrivals of kind poisson or gamma")
    again = Gamma(rate=rate, cv=arrivals.cv) if isinstance(arrivals, Gamma) else Poisson(rate=rate)
    requests = workload.requests
    if requests:
        turns = _turns(workload.conversations.turns) if workload.conversations else 1.0
        requests = max(requests, math.ceil(rate * trial_s * turns))
    return msgspec.structs.replace(workload, name=f"{workload.name}-{rate:.3g}", arrivals=again, requests=requests)


def _turns(of: Turns) -> float:
    """How many a conversation has on average."""
    return float(lengths(of, Side.PROMPT, 1000, None, np.random.default_rng(0)).mean())


class Search:
    """The runs of one search for the rate of a task's one workload; their results are written as they come."""

    def __init__(self, task: Task, share: float, trial_s: float) -> None:
        self._task, self._share, self._trial_s = task, share, trial_s
        self.results: list[Result] = []

    async def trial(self, rate: float) -> Trial:
        """Run at that rate."""
        (asked,) = self._task.workloads
        workload = at_rate(asked, rate, self._trial_s)
        if any(result.workload.name == workload.name for result in self.results):
            workload = msgspec.structs.replace(workload, name=f"{workload.name}-again")  # with prompts of its own, too
        (result,) = await run_together(self._task, [workload])
        self.results.append(result)
        return judge(result, rate, self._share)

    def write(self, found: Capacity) -> None:
        """The search as a document and as a page, over the latest run at the rate that was found, or the last one.

        The page goes on with the runs at other rates, the lowest first.
        """
        by_rate: dict[float, Result] = {}
        for trial, result in zip(found.trials, self.results, strict=True):
            if not (trial.interrupted and trial.rate in by_rate):  # the whole run at that rate is what there is
                by_rate[trial.rate] = result
        if not by_rate:
            return
        rate = found.highest or next(reversed(by_rate))
        (asked,) = self._task.workloads
        whole = msgspec.structs.replace(by_rate.pop(rate), capacity=found)
        path = self._task.out / f"{asked.name}.json"
        write_result(whole, path)
        others = [result for _, result in sorted(by_rate.items())]
        write_page([whole, *others], path.with_suffix(".html"), f"{asked.name}: capacity")
        Console(stderr=True).print(f"{path} has the search, {path.with_suffix('.html')} shows it", soft_wrap=True)


def judge(result: Result, rate: float, share: float) -> Trial:
    """Whether a run holds its rate."""
    (summary,) = result.summary
    good = summary.good_share.value or 0.0
    if result.interrupted:
        because = INTERRUPTED
    elif result.doubts:
        because = result.doubts[0]
    elif summary.failed:
        because = f"{summary.failed} requests failed"
    elif good < share:
        because = f"{good:.0%} of the requests met the SLO"
    else:
        because = _behind(result)
    return Trial(rate, good, not because, because, result.interrupted)


def _behind(result: Result) -> str:
    """Why the server can't take the rate for long, whatever the SLO says of the first requests; nothing if it can."""
    for repeats in result.measured.values():
        for one in repeats:
            there = np.isfinite(one.columns.finished)
            found = pace(one.columns.intended[there], one.columns.finished[there])
            if not found.kept_up:
                return f"{found.completed:.3g} requests/s were completed of {found.came:.3g} that came"
    return ""


def trial_table(found: Capacity, workload: Workload) -> Table:
    """What was tried, and the answer in its title."""
    if found.highest is None:
        title = f"{workload.name}: no rate that was tried holds"
    else:
        title = f"{workload.name}: {found.highest:.3g} requests/s" + ("" if found.confirmed else ", not confirmed")
    if found.interrupted:
        title += ", interrupted"
    table = Table(title=title, title_justify="left")
    for heading in ("requests/s", "met the SLO"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for trial in found.trials:
        colour = "yellow" if trial.interrupted else "green" if trial.holds else "red"
        verdict = f"[{colour}]{'holds' if trial.holds else trial.because}[/]"
        table.add_row(f"{trial.rate:.3g}", f"{trial.good:.1%}", verdict)
    return table
