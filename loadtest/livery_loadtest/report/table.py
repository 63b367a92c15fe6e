"""A result in a terminal: a few tables, and every reason to doubt them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery_loadtest.breakdown import Group
from livery_loadtest.capacity import Capacity
from livery_loadtest.figures import Latency, Summary
from livery_loadtest.growth import Growth
from livery_loadtest.intervals import Estimate
from livery_loadtest.report.result import Result
from livery_loadtest.report.words import (
    NOTHING,
    arrivals,
    bounds,
    count,
    duration,
    hardware,
    number,
    objective,
    share,
    with_bounds,
)
from livery_loadtest.verify import Finding, Verification

_GROUPS_SHOWN = 8


def print_result(result: Result, console: Console) -> None:
    """Print everything that a person wants to know first; the rest is in the page and the document."""
    load = result.workload
    console.print(f"[bold]{escape(load.name)}[/]: {escape(arrivals(load))}, seed {load.seed}")
    console.print(f"client: {escape(hardware(result.origin.machine))}; {escape(result.origin.date)}")
    for line in _warnings(result):
        console.print(line)
    if not result.summary:
        console.print("[red]nothing was measured[/]")
        return
    console.print(_rates(result))
    console.print(_latencies(result.summary))
    for title, groups in (("adapters", "adapters"), ("tenants", "tenants")):
        found = [(one.target, getattr(one, groups)) for one in result.summary]
        if any(len(some) > 1 for _, some in found):
            console.print(_groups(title, found))
    for one in result.summary:
        for line in _facts(one):
            console.print(line, highlight=False)
    if result.capacity:
        console.print(_capacity(result.capacity), highlight=False)
    for target, verification in result.verified.items():
        for line in _verified(target, verification):
            console.print(line, highlight=False)
    console.print(f"[dim]{escape(result.summary[0].intervals)}[/]")


def _warnings(result: Result) -> Iterator[str]:
    if result.interrupted:
        yield "[bold yellow]interrupted: what follows is what was finished by then[/]"
    for reason in result.doubts:
        yield f"[bold red]invalid[/]: the client was the bottleneck: {escape(reason)}"
    for target in result.targets:
        for anew in result.anew_of(target.name):
            yield f"{escape(target.name)}: measured anew: {escape(anew)}"


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in words:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _rates(result: Result) -> Table:
    good = objective(result.workload.slo)
    numbers = ["output tok/s", "req/s", *(["good req/s", "good"] if good else []), "adapters at once", "errors"]
    table = _table("throughput" + (f"; good: {good}" if good else ""), ["target", "repeats"], numbers)
    for one in result.summary:
        goodput = [_with(one.good_per_second), share(one.good_share.value)] if good else []
        errors = f"[red]{count(one.failed)}[/]" if one.failed else "0"
        cells = [_with(one.tokens_per_second), _with(one.requests_per_second), *goodput]
        table.add_row(escape(one.target), count(one.repeats), *cells, number(one.distinct_adapters), errors)
    return table


def _with(value: Estimate) -> str:
    around = bounds(value)
    return number(value.value) + (f" [dim]({around})[/]" if around else "")


def _latencies(summaries: Sequence[Summary]) -> Table:
    table = _table("latencies in ms", ["target", "what"], ["p50", "p90", "p95", "p99", "most"])
    for one in summaries:
        rows = (("TTFT", one.ttft_ms), ("ITL", one.itl_ms), ("TPOT", one.tpot_ms), ("E2E", one.e2e_ms))
        for what, value in rows:
            table.add_row(escape(one.target), what, *_percentiles(value), end_section=what == "E2E")
    return table


def _percentiles(value: Latency | None) -> list[str]:
    if value is None:
        return [NOTHING] * 5
    return [_with(value.p50), number(value.p90.value), number(value.p95.value), _with(value.p99), number(value.most)]


def _groups(title: str, found: Sequence[tuple[str, Sequence[Group]]]) -> Table:
    numbers = ["requests", "failed", "tok/s", "TTFT p50", "TTFT p99", "E2E p50"]
    table = _table(f"{title} with most requests, latencies in ms", ["target", "name"], numbers)
    for target, groups in found:
        for place, one in enumerate(groups[:_GROUPS_SHOWN]):
            cells = [number(value) for value in (one.ttft_p50_ms, one.ttft_p99_ms, one.e2e_p50_ms)]
            failed = f"[red]{count(one.failed)}[/]" if one.failed else "0"
            table.add_row(
                *(escape(target) if not place else "", escape(one.name), count(one.requests), failed),
                *(number(one.tokens_per_second), *cells),
                end_section=place == len(groups[:_GROUPS_SHOWN]) - 1,
            )
    return table


def _capacity(found: Capacity) -> str:
    cut = ", [yellow]interrupted[/]" if found.interrupted else ""
    if found.highest is None:
        return f"[red]capacity: none of {len(found.trials)} rates held[/]{cut}"
    failing = f", {number(found.lowest_failing)} did not" if found.lowest_failing else ""
    doubt = "" if found.confirmed else " [yellow](not confirmed)[/]"
    return (
        f"[bold]capacity: {number(found.highest)} requests/s held[/]{failing}{doubt}; {len(found.trials)} trials{cut}"
    )


def _facts(one: Summary) -> Iterator[str]:
    where = escape(one.target)
    for error in one.errors:
        waited = "" if error.retry_after_s is None else f", told to wait {number(error.retry_after_s)} s"
        yield f"[red]{where}: {count(error.count)} × {escape(error.kind)}{waited}[/], such as: {escape(error.example)}"
    if one.fairness:
        lag, between = one.fairness.largest_lag_tokens, one.fairness.between
        who = f" ({escape(between[0])} ahead of {escape(between[1])})" if between else ""
        yield f"{where}: Jain's index {number(one.fairness.jain)}, largest lag {number(lag)} tokens{who}"
    if one.cold_starts:
        cold = one.cold_starts
        yield (
            f"{where}: cold TTFT p50 {duration(cold.cold_p50_ms)}, p99 {duration(cold.cold_p99_ms)} "
            f"({count(cold.cold)} adapters); warm p50 {duration(cold.warm_p50_ms)}, p99 {duration(cold.warm_p99_ms)}"
        )
    if one.cached_share is not None:
        yield f"{where}: {share(one.cached_share)} of the prompts' tokens came from the server's cache"
    if one.structured:
        asked, parsed, cut = one.structured.asked, one.structured.parsed, one.structured.cut
        yield f"{where}: {count(parsed)} of {count(asked)} structured answers are JSON, {count(cut)} were cut by length"
    if one.disconnects:
        yield f"{where}: {count(one.disconnects.left)} of {count(one.disconnects.planned)} clients left as planned"
    usage = one.usage
    for value, what in (
        (one.retried, "requests were sent twice, as the server closed the connection kept for them just then"),
        (usage.without_usage, "answers came without usage; their events were counted as tokens"),
        (usage.more_events_than_tokens, "answers had more events than their usage says tokens"),
        (usage.off_length, "answers had another number of tokens than asked for"),
    ):
        if value:
            yield f"[yellow]{where}: {count(value)} {what}[/]"
    for line in one.growth:
        if line.shown or line.allowed is not None:
            yield _growth(where, line)


def _growth(where: str, line: Growth) -> str:
    if line.missing:
        return f"[red]{where}: {escape(line.what)}: the workload bounds it, but there is too little of it to say[/]"
    said = f"{where}: {escape(line.what)}: {with_bounds(line.per_hour, f'{line.unit} an hour'.strip())}"
    allowed = "" if line.allowed is None else f", {number(line.allowed)} % an hour allowed"
    said += f", {number(line.percent_per_hour)} % an hour{allowed}"
    colour = "red" if line.too_steep else "yellow" if line.shown and line.allowed is None else "green"
    return f"[{colour}]{said}[/]"


def _verified(target: str, one: Verification) -> Iterator[str]:
    wrong = one.wrong
    parts = [f"{count(one.count(finding))} {finding}" for finding in Finding if one.count(finding)]
    sample = f"of {count(len(one.compared))} answers of {count(one.models)} models"
    colour = "red" if wrong else "yellow" if one.not_looked_into else "green"
    why = " (of those that differ only the least alike are)" if one.not_looked_into else ""
    yield f"[{colour}]{escape(target)}: {sample}, compared with {escape(one.reference)}: {', '.join(parts)}{why}[/]"
    for answer in wrong:
        yield (
            f"  [red]request {answer.index} asked {escape(answer.model)} and was answered as "
            f"{escape(answer.as_of)}: {escape(repr(answer.under_load[:60]))}; expected "
            f"{escape(repr(answer.reference[:60]))}[/]"
        )
