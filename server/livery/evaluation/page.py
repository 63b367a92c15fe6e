"""An evaluation as one HTML page that needs nothing else, in the load test's dress: its template, style and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from livery.evaluation.report import Report, Row, SubjectReport
from livery.evaluation.scorer import BASE_LABEL
from livery.evaluation.table import NAMES, NOTHING, SHARES, apart, compared_in, title, told, versus
from livery_loadtest.report.page import environment
from livery_loadtest.report.plots import Axis, Dot, Label, Numbers, Plot, linear

_BETTER, _WORSE, _UNKNOWN = 0, 1, 7  # colours
MEANT = (
    "Bars and brackets are 95 % intervals: how far a number would move on other texts or items of the same kind. Those "
    "of texts and of differences are by the bootstrap over pieces (windows of a text, items of a task), those of "
    "shares of items are Wilson's. A difference is over the same pieces for both, and is shown as better or worse "
    "where its interval leaves out 0. Each interval is of one number alone: of twenty differences between equals, one "
    "is expected to be shown."
)


@dataclass(frozen=True)
class View:
    """One subject as the page shows it; each plot with the value that its line stands at."""

    title: str
    plots: Sequence[tuple[Plot, float | None]]
    numbers: Numbers
    note: str = ""


def page(report: Report) -> str:
    """The page."""
    others = len(report.variants) - 1
    return (
        environment("livery.evaluation")
        .get_template("eval.html")
        .render(
            title=f"{others} adapter{'' if others == 1 else 's'} of {report.base}",
            about=f"On {report.date[:10]} by {report.where}, livery {report.livery}; {report.seconds:.1f} s.",
            failed=[(one.label, one.failed) for one in report.variants if one.failed],
            notes=[(one.label, note) for one in report.variants for note in one.notes],
            views=[_view(subject) for subject in report.subjects],
            variants=_variants(report),
            meant=MEANT,
        )
    )


def write_page(report: Report, path: Path) -> None:
    """Write the page, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(report), encoding="utf-8")


def _view(subject: SubjectReport) -> View:
    than = list(dict.fromkeys(one.than for row in subject.rows for one in row.versus))
    plots = [_values(subject), *(_differences(subject, label) for label in than)]
    return View(title(subject), [plot for plot in plots if plot is not None], _numbers(subject, than))


def _values(subject: SubjectReport) -> tuple[Plot, float | None] | None:
    """Every variant's number in the subject's own metric; the line is the base's."""
    rows = [(row, row.measures[subject.metric]) for row in subject.rows if subject.metric in row.measures]
    if not rows:
        return None
    ends = [end for _, one in rows for end in (one.value, *(one.interval or ()))]
    is_share = subject.metric in SHARES
    label: Label = (lambda at: f"{100 * at:.0f} %") if is_share else (lambda at: f"{at:.4g}")
    x = linear(NAMES.get(subject.metric, subject.metric), 0.0 if is_share else min(ends), max(ends), label)
    dots = []
    for place, (row, one) in enumerate(rows):
        low, high = one.interval or (one.value, one.value)
        says = f"{row.label}: {told(subject.metric, one)}"
        dots.append(Dot(_colour(subject, row), one.value, len(rows) - place - 0.5, says, low, high))
    line = next((one.value for row, one in rows if row.label == BASE_LABEL), None)
    better = "Further left is better" if subject.lower else "Further right is better"
    return Plot(NAMES.get(subject.metric, subject.metric), x, _labels(rows), dots=dots, note=f"{better}."), line


def _differences(subject: SubjectReport, than: str) -> tuple[Plot, float | None] | None:
    rows = [(row, one) for row in subject.rows if (one := versus(subject, row, than)) is not None]
    if not rows:
        return None
    is_share = subject.metric in SHARES
    ends = [0.0, *(end for _, one in rows for end in (one.difference, *(one.interval or ())))]
    label: Label = (lambda at: f"{100 * at:+.0f}") if is_share else (lambda at: f"{at:+.3g}")
    unit = f"{compared_in(subject)}, percentage points" if is_share else compared_in(subject)
    x = linear(unit, min(ends), max(ends), label)
    dots = []
    for place, (row, one) in enumerate(rows):
        low, high = one.interval or (one.difference, one.difference)
        says = f"{row.label} − {than}: {apart(one.metric, one.difference, one.interval)}"
        dots.append(Dot(_shown(one.better), one.difference, len(rows) - place - 0.5, says, low, high))
    return Plot(f"Difference from {than}", x, _labels(rows), dots=dots), 0.0


def _labels(rows: Sequence[tuple[Row, object]]) -> Axis:
    places = [(len(rows) - place - 0.5, row.label) for place, (row, _) in enumerate(rows)]
    return Axis("", 0.0, float(len(rows)), places)


def _colour(subject: SubjectReport, row: Row) -> int:
    one = versus(subject, row, BASE_LABEL)
    return _UNKNOWN if one is None else _shown(one.better)


def _shown(better: bool | None) -> int:
    return {True: _BETTER, False: _WORSE, None: _UNKNOWN}[better]


def _numbers(subject: SubjectReport, than: Sequence[str]) -> Numbers:
    metrics = [name for name in NAMES if any(name in row.measures for row in subject.rows)]
    metrics += [name for row in subject.rows for name in row.measures if name not in NAMES and name not in metrics]
    rows = []
    for row in subject.rows:
        cells = [_cell(told(name, row.measures.get(name))) for name in metrics]
        for label in than:
            one = versus(subject, row, label)
            cells.append(NOTHING if one is None else _cell(apart(one.metric, one.difference, one.interval)))
        rows.append([row.label, *cells])
    heads = [NAMES.get(name, name) for name in metrics]
    return Numbers(["", *heads, *(f"{compared_in(subject)} − {label}" for label in than)], rows, words=1)


def _cell(text: str) -> str:
    """The number, and its interval in small."""
    return text.replace(" (", "\n(", 1)


def _variants(report: Report) -> Numbers:
    rows = [
        [one.label, one.role, "" if one.version is None else str(one.version), one.digest[:12], one.failed]
        for one in report.variants
    ]
    return Numbers(["", "what it is", "version", "digest", "failed"], rows, words=5)
