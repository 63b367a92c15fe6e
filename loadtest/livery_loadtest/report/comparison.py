"""A comparison as a terminal table and as an HTML page; its JSON is the comparison itself."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery_loadtest.compare import Comparison, Metric
from livery_loadtest.intervals import Estimate
from livery_loadtest.origin import write_json
from livery_loadtest.report.page import environment
from livery_loadtest.report.plots import Axis, Dot, Numbers, Plot, logarithmic
from livery_loadtest.report.words import NOTHING, count, duration, number, share

_COLOURS = {True: "green", False: "red", None: "dim"}


def print_comparison(found: Comparison, console: Console) -> None:
    """One row a number: both values, B over A with its interval, p, and the verdict."""
    for doubt in found.doubts:
        console.print(f"[bold red]invalid[/]: {escape(doubt)}")
    for told in filter(None, (found.cached, found.names)):
        console.print(f"[yellow]{escape(told)}[/]", highlight=False)
    table = Table(title=f"{escape(found.b)} beside {escape(found.a)}: {escape(found.workload)}", title_justify="left")
    for heading in ("", "A", "B", "B / A", "95 % interval", "p"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_column("B is")
    for one in found.metrics:
        verdict = f"[{_COLOURS[one.better]}]{one.verdict}[/]"
        table.add_row(*_cells(one), verdict)
    console.print(table)
    console.print(f"[dim]{escape(found.pairs)}; A is {escape(found.a)}, B is {escape(found.b)}. {_meant(found)}[/]")


def _cells(one: Metric) -> list[str]:
    around = f"{number(one.ratio.low)} to {number(one.ratio.high)}" if one.ratio else NOTHING
    ratio = number(one.ratio.value) if one.ratio else NOTHING
    return [one.name, value(one, one.a), value(one, one.b), ratio, around, chance(one.p)]


def _meant(found: Comparison) -> str:
    """What p and the intervals stand for."""
    return (
        f"p is how often, of two servers that are the same, chance makes any of these {len(found.metrics)} numbers "
        "differ as much; a difference is shown where that is below 5 in 100. Intervals are of each number alone, so "
        "one may leave out 1 where no difference is shown."
    )


def value(one: Metric, told: float | None) -> str:
    """A number in its metric's unit."""
    if told is None:
        return NOTHING
    if one.unit == "ms":
        return duration(told)
    return share(told) if one.unit == "share" else f"{number(told)}/s"


def chance(p: float | None) -> str:
    """A p-value: never 0."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def headline(found: Comparison) -> str:
    """What was shown, in a sentence or two."""
    better = [one for one in found.metrics if one.better is True]
    worse = [one for one in found.metrics if one.better is False]
    if not better and not worse:
        return f"No difference between {found.a} and {found.b} was shown at 95 %."
    said = []
    for metrics, how in ((better, "better"), (worse, "worse")):
        if metrics:
            named = ", ".join(f"{one.name}{_times(one.ratio)}" for one in metrics)
            said.append(f"{found.b} is {how} than {found.a} in {named}.")
    return " ".join(said)


def _times(ratio: Estimate | None) -> str:
    return f" (× {number(ratio.value)})" if ratio else ""


def write_comparison(found: Comparison, path: Path) -> None:
    """Write it as JSON, creating the folder."""
    write_json(found, path)


def comparison_page(found: Comparison) -> str:
    """The HTML page, which needs nothing else."""
    numbers = Numbers(
        ["number", f"A: {found.a}", f"B: {found.b}", "B / A", "95 % interval", "p", "B is"],
        [[*_cells(one), one.verdict.value] for one in found.metrics],
        words=1,
    )
    return (
        environment()
        .get_template("comparison.html")
        .render(
            title=f"{found.b} beside {found.a}",
            found=found,
            headline=headline(found),
            meant=_meant(found),
            about=f"{found.workload}; {count(found.repeats)} repeats, {count(found.requests)} requests on each.",
            forest=_forest(found),
            numbers=numbers,
            verdicts=[_CLASSES[one.better] for one in found.metrics],
        )
    )


_CLASSES = {True: "faster", False: "slower", None: ""}


def write_comparison_page(found: Comparison, path: Path) -> None:
    """Write the page, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(comparison_page(found), encoding="utf-8")


def _forest(found: Comparison) -> Plot | None:
    """A row for each ratio: where it lies beside 1, and its interval."""
    rows = [one for one in found.metrics if one.ratio is not None and one.ratio.value > 0]
    if not rows:
        return None
    ratios = [one.ratio for one in rows if one.ratio is not None]
    low = min(0.8, *(max(ratio.low, ratio.value / 50) for ratio in ratios))
    high = max(1.25, *(min(ratio.high, ratio.value * 50) for ratio in ratios))
    places = [(len(rows) - place - 0.5, one.name) for place, one in enumerate(rows)]
    y = Axis("", 0.0, float(len(rows)), places)
    dots = [
        Dot(
            {True: 0, False: 1, None: 7}[one.better],
            ratio.value,
            place,
            f"{one.name}: B / A {number(ratio.value)} ({number(ratio.low)} to {number(ratio.high)}), {one.verdict}",
            ratio.low,
            ratio.high,
        )
        for one, ratio, (place, _) in zip(rows, ratios, places, strict=True)
    ]
    x = logarithmic("B / A, left of 1 is less", low, high, lambda at: f"{at:.3g}")
    return Plot("B over A", x, y, dots=dots)
