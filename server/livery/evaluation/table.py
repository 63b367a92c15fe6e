"""An evaluation as tables for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery.evaluation.report import NATS, Interval, Measure, Report, Row, SubjectReport, Versus

NAMES = {
    "perplexity": "perplexity per token",
    "byte_perplexity": "per byte",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "accuracy_norm": "by length",
    "exact_match": "exact answers",
}
SHARES = ("accuracy", "accuracy_norm", "exact_match")
_COLOURS = {True: "green", False: "red", None: "dim"}
NOTHING = "–"


def print_report(report: Report, console: Console) -> None:
    """A table for each subject; who failed, and why; what is to be known of the numbers."""
    for subject in report.subjects:
        console.print(_table(subject, report))
    for variant in report.variants:
        if variant.failed:
            console.print(f"[red]{escape(variant.label)} failed:[/] {escape(variant.failed)}", highlight=False)
        for note in variant.notes:
            console.print(f"[yellow]{escape(variant.label)}:[/] {escape(note)}", highlight=False)
    console.print(
        f"[dim]{_counted(report)} in {report.seconds:.1f} s by {escape(report.where)}. In brackets: 95 % intervals, by "
        "the bootstrap over pieces; differences are over the same pieces, and coloured where their interval leaves out "
        "0.[/]",
        highlight=False,
    )


def _counted(report: Report) -> str:
    return f"{len(report.variants)} variants on {sum(one.pieces for one in report.subjects):,} pieces"


def _table(subject: SubjectReport, report: Report) -> Table:
    table = Table(title=escape(title(subject)), title_justify="left")
    metrics = [name for name in NAMES if any(name in row.measures for row in subject.rows)]
    than = list(dict.fromkeys(one.than for row in subject.rows for one in row.versus))
    table.add_column("")
    for name in metrics:
        table.add_column(NAMES[name], justify="right")
    for label in than:
        table.add_column(f"{compared_in(subject)} − {escape(label)}", justify="right")
    for row in subject.rows:
        cells = [told(name, row.measures.get(name)) for name in metrics]
        differences = [_versus(subject, row, label) for label in than]
        role = report.variant(row.label).role
        aside = " [dim](active)[/]" if role == "active" else ""
        table.add_row(escape(row.label) + aside, *cells, *differences)
    return table


def title(subject: SubjectReport) -> str:
    """What a subject is, in a line."""
    if subject.kind == "text":
        return (
            f"{subject.name}: {subject.tokens:,} tokens predicted, {subject.nbytes:,} bytes, in {subject.pieces} "
            f"windows of up to {subject.window}"
        )
    shots = f", {subject.shots} examples shown" if subject.shots else ""
    how = {"chat": "as conversations", "plain": "as plain text"}.get(subject.prompts, "")
    return f"{subject.name}: {subject.pieces} items" + (f", {how}" if how else "") + shots


def compared_in(subject: SubjectReport) -> str:
    """What differences are of."""
    return "nats per token" if subject.kind == "text" else NAMES.get(subject.metric, subject.metric)


def compared_metric(subject: SubjectReport) -> str:
    return NATS if subject.kind == "text" else subject.metric


def versus(subject: SubjectReport, row: Row, than: str) -> Versus | None:
    """A row's difference from another in the subject's own metric."""
    metric = compared_metric(subject)
    return next((one for one in row.versus if one.than == than and one.metric == metric), None)


def told(metric: str, measure: Measure | None) -> str:
    """A number with its interval."""
    if measure is None:
        return NOTHING
    around = "" if measure.interval is None else f" ({_one(metric, measure.interval[0])} to "
    around += "" if measure.interval is None else f"{_one(metric, measure.interval[1])})"
    return _one(metric, measure.value) + around


def apart(metric: str, difference: float, interval: Interval | None) -> str:
    """A difference with its interval and its sign."""
    scale, unit = (100, " pp") if metric in SHARES else (1, "")
    digits = 1 if metric in SHARES else 4
    around = "" if interval is None else f" ({scale * interval[0]:+.{digits}f} to {scale * interval[1]:+.{digits}f})"
    return f"{scale * difference:+.{digits}f}{unit}{around}"


def _one(metric: str, value: float) -> str:
    if metric in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:,.3f}" if value < 1e6 else f"{value:.3g}"


def _versus(subject: SubjectReport, row: Row, than: str) -> str:
    one = versus(subject, row, than)
    if one is None:
        return ""
    return f"[{_COLOURS[one.better]}]{apart(one.metric, one.difference, one.interval)}[/]"
