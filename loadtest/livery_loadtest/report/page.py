"""A result, or several of one suite, as one HTML page that needs nothing else: no network, no other file.

Everything in it that came from outside (names, error messages, the command) is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import msgspec
import yaml

from livery_loadtest.breakdown import Group
from livery_loadtest.capacity import Capacity
from livery_loadtest.figures import Summary
from livery_loadtest.intervals import Estimate
from livery_loadtest.report import maps, pictures, sweeps
from livery_loadtest.report.facts import facts, fairness
from livery_loadtest.report.overview import overview
from livery_loadtest.report.plots import Numbers, Plot, Strips
from livery_loadtest.report.result import Result, Server
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
    span,
)
from livery_loadtest.spec import Closed, Workload


@dataclass(frozen=True)
class Figure:
    """One target's number in a tile; `part` is its share of the largest, in percent."""

    colour: int
    who: str
    value: str
    unit: str = ""
    aside: str = ""
    part: float | None = None
    bad: bool = False


@dataclass(frozen=True)
class Tile:
    """A number that a reader looks for first."""

    title: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class View:
    """One result as the page shows it: words, pictures and tables, no number left to be formatted."""

    result: Result
    about: str
    counted: str
    intervals: str
    tiles: Sequence[Tile]
    capacity: Plot | None
    latencies: Sequence[Plot]
    latency_numbers: Numbers
    over_time: Sequence[Plot]
    timeline: Strips | None
    heat_maps: Sequence[Strips]
    adapters: Numbers | None
    tenants: Numbers | None
    fairness: Sequence[str]
    errors: Sequence[Sequence[str]]
    facts: Numbers | None
    sampled: Sequence[Plot]
    yaml: str
    origin: Sequence[tuple[str, str]]
    client: Numbers


def environment(*packages: str) -> jinja2.Environment:
    """Templates of this package, and of others in its dress, with all escaped that a template doesn't draw itself."""
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in ("livery_loadtest.report", *packages)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["json"] = lambda value: msgspec.json.encode(value).decode()
    return made


def page(results: Sequence[Result], title: str = "") -> str:
    """The page of one result, or of several workloads of one suite under a title."""
    swept = sweeps.swept(results)
    known: dict[str, Server] = {}
    for result in results:
        known |= {one.name: one for one in result.targets if one.name not in known}
    return (
        environment()
        .get_template("result.html")
        .render(
            title=title or (results[0].workload.name if results else "nothing"),
            targets=list(known.values()),
            views=[_view(result) for result in results],
            overview=overview(results),
            sweep=sweeps.sweep(results),
            swept=swept[0] if swept else "",
        )
    )


def write_page(results: Sequence[Result], path: Path, title: str = "") -> None:
    """Write the page, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results, title), encoding="utf-8")


def _view(result: Result) -> View:
    groups = [(one.target, one.adapters) for one in result.summary]
    return View(
        result=result,
        about=_about(result),
        counted=_counted(result.workload),
        intervals=_intervals(result),
        tiles=_tiles(result),
        capacity=sweeps.searched(result.capacity) if result.capacity else None,
        latencies=pictures.latencies(result),
        latency_numbers=pictures.latency_numbers(result),
        over_time=pictures.over_time(result),
        timeline=maps.timeline(result),
        heat_maps=maps.heat_maps(result),
        adapters=_groups("adapter", groups),
        tenants=_groups("tenant", [(one.target, one.tenants) for one in result.summary]),
        fairness=fairness(result.summary),
        errors=_errors(result.summary),
        facts=facts(result),
        sampled=pictures.sampled(result),
        yaml=workload_yaml(result.workload),
        origin=_origin(result),
        client=_client(result),
    )


def _about(result: Result) -> str:
    load = result.workload
    requests = sum(one.requests for one in result.summary)
    repeats = max((one.repeats for one in result.summary), default=0)
    several = f"{repeats} repeats" if repeats != 1 else "1 repeat"
    return (
        f"{arrivals(load)[:1].upper()}{arrivals(load)[1:]}; {several}, {count(requests)} requests in all, "
        f"on {result.origin.date[:10]}."
    )


def _counted(load: Workload) -> str:
    if isinstance(load.arrivals, Closed):
        return "Latencies count from when a stream was free for the request, connecting included."
    later = " (a chat's next turn: when the pause after an answer was over)" if load.conversations else ""
    return (
        f"Latencies count from when a request should have been sent{later}, whether the client was late or not, "
        "connecting included."
    )


def _intervals(result: Result) -> str:
    good = objective(result.workload.slo)
    said = f"{result.summary[0].intervals}." if result.summary else ""
    return said + (f" Good: {good}." if good else "")


def _tiles(result: Result) -> list[Tile]:
    good = objective(result.workload.slo)
    rows = result.summary
    tiles = [_capacity(result.capacity)] if result.capacity else []
    tiles += [
        Tile("Output tokens per second", _rated(rows, [one.tokens_per_second for one in rows], "tok/s")),
        Tile("Time to first token, p50", _waits(rows, "ttft_ms")),
        Tile("Between tokens, p50", _waits(rows, "itl_ms")),
        Tile("Requests per second", _rated(rows, [one.requests_per_second for one in rows], "req/s")),
    ]
    if good:
        found = [
            Figure(
                colour,
                one.target,
                share(one.good_share.value),
                aside=f"{number(one.good_per_second.value)} req/s",
                part=round(100 * one.good_share.value, 1),
            )
            for colour, one in enumerate(rows)
        ]
        tiles.append(Tile("Good answers", found))
    errors = [
        Figure(colour, one.target, count(one.failed), f"of {count(one.requests)}", bad=one.failed > 0)
        for colour, one in enumerate(rows)
    ]
    tiles.append(Tile("Failed requests", errors))
    if any(len(one.adapters) > 1 for one in rows):
        at_once = [
            Figure(colour, one.target, number(one.distinct_adapters), aside="on average")
            for colour, one in enumerate(rows)
        ]
        tiles.append(Tile("Different models at once", at_once))
    return tiles


def _capacity(found: Capacity) -> Tile:
    """The highest rate that met the SLO."""
    if found.highest is None:
        return Tile("Capacity", [Figure(0, "", NOTHING, aside="no rate held", bad=True)])
    aside = f"{number(found.lowest_failing)} failed" if found.lowest_failing else "the ceiling held"
    told = aside if found.confirmed else f"{aside}, not confirmed"
    return Tile("Capacity within the SLO", [Figure(0, "", number(found.highest), "req/s", told)])


def _rated(rows: Sequence[Summary], values: Sequence[Estimate], unit: str) -> list[Figure]:
    most = max((one.value for one in values), default=0.0) or 1.0
    return [
        Figure(colour, row.target, number(one.value), unit, bounds(one), round(100 * one.value / most, 1))
        for colour, (row, one) in enumerate(zip(rows, values, strict=True))
    ]


def _waits(rows: Sequence[Summary], name: str) -> list[Figure]:
    found = [getattr(one, name) for one in rows]
    most = max((one.p50.value for one in found if one is not None), default=0.0) or 1.0
    return [
        Figure(colour, row.target, NOTHING)
        if one is None
        else Figure(
            colour,
            row.target,
            *_split(duration(one.p50.value)),
            aside=f"p99 {duration(one.p99.value)}",
            part=round(100 * one.p50.value / most, 1),
        )
        for colour, (row, one) in enumerate(zip(rows, found, strict=True))
    ]


def _split(told: str) -> tuple[str, str]:
    value, _, unit = told.partition(" ")
    return value, unit


def _groups(what: str, found: Sequence[tuple[str, Sequence[Group]]]) -> Numbers | None:
    if not any(len(groups) > 1 for _, groups in found):
        return None
    head = [what, "target", "requests", "failed", "tok/s", "TTFT p50", "TTFT p99", "TPOT p50", "E2E p50", "E2E p99"]
    rows, colours = [], []
    names = list(dict.fromkeys(one.name for _, groups in found for one in groups))
    by_name = {(target, one.name): one for target, groups in found for one in groups}
    for name in names:
        for colour, (target, _) in enumerate(found):
            one = by_name.get((target, name))
            if one is None:
                continue
            waits = (one.ttft_p50_ms, one.ttft_p99_ms, one.tpot_p50_ms, one.e2e_p50_ms, one.e2e_p99_ms)
            numbers = [count(one.requests), count(one.failed), number(one.tokens_per_second), *map(duration, waits)]
            rows.append([name, target, *numbers])
            colours.append(colour)
    return Numbers(head, rows, colours=colours)


def _errors(summaries: Sequence[Summary]) -> list[list[str]]:
    return [
        [
            one.target,
            error.kind,
            count(error.count),
            NOTHING if error.retry_after_s is None else f"{number(error.retry_after_s)} s",
            error.example,
        ]
        for one in summaries
        for error in one.errors
    ]


def workload_yaml(load: Workload) -> str:
    """The workload as a file that can be run again; what has its default value is left out."""
    fields = msgspec.to_builtins(load)
    least = msgspec.to_builtins(Workload(name=load.name, requests=1))
    always = ("name", "seed", "requests")
    told = {name: value for name, value in fields.items() if name in always or value != least[name]}
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=88).strip()


def _origin(result: Result) -> list[tuple[str, str]]:
    machine = result.origin.machine
    targets = [(one.name, f"{one.url}{f', version {one.version}' if one.version else ''}") for one in result.targets]
    return [
        *targets,
        ("client", f"{hardware(machine)}, {machine.memory_gib:g} GiB, {machine.system}"),
        ("load before", f"{machine.load_average:.2f} on average over a minute"),
        ("date", result.origin.date),
        ("version", result.origin.tool_version),
    ]


def _client(result: Result) -> Numbers:
    head = ["target, repeat", "took", "processes", "CPU", "loop lag p99", "send delay p99"]
    rows = [
        [
            f"{one.target}, {one.repeat + 1}",
            span(one.seconds),
            count(one.health.processes),
            f"{100 * one.health.cpu_share:.0f} %",
            duration(one.health.loop_lag_ms[1]),
            duration(one.health.send_delay_ms[1]),
        ]
        for one in result.repeats
    ]
    return Numbers(head, rows, words=1)
