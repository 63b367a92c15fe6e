"""From what was measured to what a reader sees: a JSON document and two tables. Measures nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery_loadtest.bars import COLOURS, Bar, Verdict
from livery_loadtest.benchmark import CellResult, Outcome, Plan
from livery_loadtest.check import CheckResult
from livery_loadtest.measures import Percentiles, Spread, Summary, over_rounds, paired_ratio, summarise
from livery_loadtest.origin import Origin, write_json
from livery_loadtest.workload import Scenario, Workload

SCHEMA = "livery-bench/1"
OURS = "livery"
# Our tokens a second over a peer's, on CPU with the demo base, by the peer, the scenario and the streams.
PEER_BARS = {
    ("vllm", Scenario.MIXED, 16): Bar(4.5, 6),
    ("llama.cpp", Scenario.MIXED, 16): Bar(2, 3.5),
    ("llama.cpp", Scenario.SINGLE, 16): Bar(0.5, 1.1),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario on one target over all rounds; latencies are pooled over the rounds."""

    target: str
    scenario: Scenario
    tokens_per_second: Spread
    requests_per_second: Spread
    pooled: Summary


@dataclass(frozen=True, slots=True)
class Ratio:
    """Output tokens per second of one row over another's, round by round."""

    name: str
    value: Spread
    bar: Bar | None = None
    verdict: Verdict = Verdict.SHOWN


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run, ready for JSON. `extra` holds what the caller knows of the servers it launched."""

    origin: Origin
    plan: Plan
    workload: Workload
    targets: list[dict[str, Any]]
    rows: list[Row]
    ratios: list[Ratio]
    rounds: list[dict[str, Any]]
    checks: list[CheckResult]
    warm_up_errors: dict[str, int]
    extra: dict[str, Any]
    schema: str = SCHEMA

    def write(self, path: Path) -> None:
        """Write the report as indented JSON, creating the folder."""
        write_json(self, path)

    @property
    def failed_requests(self) -> int:
        """Requests without a usable answer, of all rounds, the warm-up and the check."""
        measured = sum(sum(row.pooled.errors.values()) for row in self.rows)
        return measured + sum(self.warm_up_errors.values()) + sum(check.failed for check in self.checks)


def build_report(outcome: Outcome, plan: Plan, workload: Workload, origin: Origin, extra: dict[str, Any]) -> Report:
    """Summarise an outcome. Rows are in the order the targets were named, base before mixed."""
    rows = _rows(outcome, plan, workload)
    targets = [
        {
            "name": subject.target.name,
            "url": subject.target.url,
            "version": subject.version,
            "base": subject.base,
            "adapters": list(subject.adapters),
        }
        for subject in outcome.subjects
    ]
    return Report(
        origin=origin,
        plan=plan,
        workload=workload,
        targets=targets,
        rows=rows,
        ratios=_ratios(outcome, plan, workload),
        rounds=[_round(result, plan, workload) for result in outcome.cells],
        checks=outcome.checks,
        warm_up_errors=outcome.warm_up_errors,
        extra=extra,
    )


def _expected_tokens(plan: Plan, workload: Workload) -> int | None:
    return workload.max_tokens if plan.dialect.ignore_eos else None


def _groups(outcome: Outcome) -> dict[tuple[str, Scenario], list[CellResult]]:
    """Cells by target and scenario, each list in the order of its rounds."""
    order = {subject.target.name: index for index, subject in enumerate(outcome.subjects)}
    scenarios = list(Scenario)

    def key(result: CellResult) -> tuple[int, int]:
        return order[result.cell.subject.target.name], scenarios.index(result.cell.scenario)

    ordered = sorted(outcome.cells, key=key)
    names = list(order)
    return {
        (names[target], scenarios[scenario]): list(group) for (target, scenario), group in groupby(ordered, key=key)
    }


def _rows(outcome: Outcome, plan: Plan, workload: Workload) -> list[Row]:
    rows = []
    for (target, scenario), results in _groups(outcome).items():
        expected = _expected_tokens(plan, workload)
        each = [summarise([result.records], expected) for result in results]
        tokens = over_rounds([one.tokens_per_second for one in each])
        requests = over_rounds([one.requests_per_second for one in each])
        assert tokens is not None
        assert requests is not None
        pooled = summarise([result.records for result in results], expected)
        rows.append(Row(target, scenario, tokens, requests, pooled))
    return rows


def _ratios(outcome: Outcome, plan: Plan, workload: Workload) -> list[Ratio]:
    """Mixed over base for each target, then the first one, and each other Livery, over the others per scenario."""
    speeds = {
        key: [summarise([result.records]).tokens_per_second for result in results]
        for key, results in _groups(outcome).items()
    }
    names = [subject.target.name for subject in outcome.subjects]
    ours = [name for name in names if name == names[0] or name.startswith(OURS)]
    wanted = [(f"{name}: mixed / base", (name, Scenario.MIXED), (name, Scenario.BASE)) for name in names] + [
        (f"{scenario}: {one} / {other}", (one, scenario), (other, scenario))
        for scenario in plan.scenarios
        for one in ours
        for other in names
        if other not in ours
    ]
    ratios = []
    for label, above, below in wanted:
        if above in speeds and below in speeds:
            value = paired_ratio(speeds[above], speeds[below])
            bar = PEER_BARS.get((*below, workload.streams)) if above[0] != below[0] else None
            if value is not None:
                verdict = bar.verdict(value.median) if bar else Verdict.SHOWN
                ratios.append(Ratio(label, value, bar, verdict))
    return ratios


def _round(result: CellResult, plan: Plan, workload: Workload) -> dict[str, Any]:
    start = min(record.started for record in result.records)
    return {
        "round": result.cell.round,
        "target": result.cell.subject.target.name,
        "scenario": result.cell.scenario,
        "summary": summarise([result.records], _expected_tokens(plan, workload)),
        "requests": [
            {
                "model": record.model,
                "started_s": round(record.started - start, 6),
                "ttft_s": round(record.arrivals[0] - record.started, 6) if record.arrivals else None,
                "e2e_s": round(record.finished - record.started, 6),
                "prompt_tokens": record.prompt_tokens,
                "output_tokens": record.output_tokens,
                "text_chunks": len(record.arrivals),
                "finish_reason": record.finish_reason,
                "error": record.error,
            }
            for record in result.records
        ],
    }


def print_report(report: Report, console: Console) -> None:
    """The tables, and every reason to doubt them: errors, odd lengths, changed answers."""
    load, plan = report.workload, report.plan
    console.print(
        f"[bold]{load.streams} streams[/], prompts of {load.prompt_words} words, {load.max_tokens} tokens out, "
        f"greedy, {load.requests} requests a round, {plan.rounds} rounds; warm-up of "
        f"{plan.warm_up_requests} requests per target and scenario not counted"
    )
    console.print(
        f"{report.origin.machine.cpu}, {report.origin.machine.cores} cores, "
        f"load average {report.origin.machine.load_average:.1f} at the start"
    )
    console.print(_speed_table(report))
    console.print(_latency_table(report))
    if report.ratios:
        console.print(_ratio_table(report))
    for line in _doubts(report):
        console.print(line)


def _speed_table(report: Report) -> Table:
    table = Table(title="throughput, median over rounds (lowest..highest)", title_justify="left")
    for heading in ("target", "scenario"):
        table.add_column(heading)
    for heading in ("output tok/s", "req/s", "models at once", "errors"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        errors = sum(row.pooled.errors.values())
        table.add_row(
            escape(row.target),
            row.scenario,
            _spread(row.tokens_per_second, 1),
            f"{row.requests_per_second.median:.2f}",
            f"{row.pooled.distinct_models:.1f}",
            f"[red]{errors}[/]" if errors else "0",
        )
    return table


def _latency_table(report: Report) -> Table:
    table = Table(title="latencies over all rounds, p50 / p90 / p99 in ms where no unit is given", title_justify="left")
    for heading in ("target", "scenario"):
        table.add_column(heading)
    for heading in ("TTFT", "ITL", "end to end"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        pooled = row.pooled
        latencies = (pooled.ttft_ms, pooled.itl_ms, pooled.e2e_ms)
        table.add_row(escape(row.target), row.scenario, *(_percentiles(value) for value in latencies))
    return table


def _ratio_table(report: Report) -> Table:
    table = Table(title="ratios of output tok/s, taken within each round", title_justify="left")
    table.add_column("ratio")
    table.add_column("median (lowest..highest)", justify="right")
    table.add_column("bar")
    table.add_column("")
    for ratio in report.ratios:
        verdict = f"[{COLOURS[ratio.verdict]}]{ratio.verdict}[/]" if ratio.bar else ""
        table.add_row(escape(ratio.name), _spread(ratio.value, 2), str(ratio.bar or ""), verdict)
    return table


def _spread(value: Spread, digits: int) -> str:
    if value.low == value.high:
        return f"{value.median:.{digits}f}"
    return f"{value.median:.{digits}f} ({value.low:.{digits}f}..{value.high:.{digits}f})"


def _percentiles(value: Percentiles | None) -> str:
    if value is None:
        return "-"
    values = (value.p50, value.p90, value.p99)
    if value.p99 >= 10_000:
        return " / ".join(f"{one / 1000:.1f}" for one in values) + " s"
    return " / ".join(f"{one:.0f}" for one in values)


def _doubts(report: Report) -> list[str]:
    lines = [f"[red]{key}: {count} warm-up requests failed[/]" for key, count in report.warm_up_errors.items()]
    for row in report.rows:
        where = f"{escape(row.target)} {row.scenario}"
        for kind, count in row.pooled.errors.items():
            example = escape(row.pooled.error_examples[kind])
            lines.append(f"[red]{where}: {count} x {escape(kind)}[/] e.g. {example}")
        for count, what in (
            (row.pooled.off_length, f"answers did not have {report.workload.max_tokens} tokens"),
            (row.pooled.more_chunks_than_tokens, "answers had more text chunks than their usage says tokens"),
            (row.pooled.usage_missing, "answers came without usage; their chunks were counted as tokens"),
        ):
            if count:
                lines.append(f"[yellow]{where}: {count} {what}[/]")
    for check in report.checks:
        lines.extend(_check_lines(check))
    return lines


def _check_lines(check: CheckResult) -> list[str]:
    colour = "green" if check.equal == check.compared and not check.failed else "yellow"
    head = (
        f"[{colour}]{escape(check.target)}: {check.equal} of {check.compared} greedy answers equal alone and "
        f"under load[/]; {check.distinct_answers} different answers from {len(check.answers)} models"
    )
    if check.failed:
        head += f"; [red]{check.failed} models failed to answer[/]"
    for other, count in check.same_as.items():
        head += f"; {count} equal to {escape(other)}'s ({check.alike.get(other, 0.0):.0%} up to where they part)"
    return [head] + [
        f"  {escape(one.model)} parts at character {one.at_character}: {escape(repr(one.alone[:60]))} alone, "
        f"{escape(repr(one.under_load[:60]))} under load"
        for one in check.differences
    ]
