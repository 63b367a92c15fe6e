"""Whether a version is better than another by as much as was asked, from a report of both."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from livery.evaluation.report import NATS, PERPLEXITY, SubjectReport
from livery.evaluation.statistics import LEAST_PIECES


class Than(StrEnum):
    """What a version is to be better than, before it is served."""

    active = "active"
    base = "base"


class Metric(StrEnum):
    """By what: perplexity on texts, accuracy (of choices, or of exact answers) on tasks."""

    perplexity = "perplexity"
    accuracy = "accuracy"


@dataclass(frozen=True, slots=True)
class Bar:
    """How much better, and on what. `by` is a share of the perplexity, or of the items; `sure`: beyond chance, too."""

    than: Than
    metric: Metric
    files: tuple[Path, ...]
    by: float = 0.0
    sure: bool = False
    chat: bool = True


def better(subject: SubjectReport, mine: str, other: str, bar: Bar) -> tuple[bool, str]:
    """On one file: whether it is, and the numbers."""
    metric = PERPLEXITY if subject.kind == "text" else subject.metric
    one, two = (subject.row(label).measures[metric].value for label in (mine, other))
    versus = next(
        found
        for found in subject.row(mine).versus
        if found.than == other and found.metric == (NATS if subject.kind == "text" else metric)
    )
    # Of items the difference that was counted, rounded once: shares rounded before they are subtracted miss the bar.
    gain = 1 - one / two if subject.kind == "text" else versus.difference
    enough = gain > 0 and gain >= bar.by and (not bar.sure or versus.better is True)
    if subject.kind == "text":
        numbers = f"perplexity {one:.4f} against {two:.4f} of {other} ({-gain:+.2%})"
    else:
        numbers = f"{100 * one:.1f} % right against {100 * two:.1f} % of {other} ({100 * gain:+.1f} points)"
    if versus.interval is not None:
        low, high = versus.interval
        unit = "nats a token" if subject.kind == "text" else "of the items"
        numbers += f", 95 % interval of the difference {low:+.4f} to {high:+.4f} {unit}"
    elif bar.sure:
        pieces = f"{subject.pieces} {'window(s)' if subject.kind == 'text' else 'item(s)'}"
        numbers += f", and {pieces} can't show that beyond chance: give at least {LEAST_PIECES}, or leave out --sure"
    return enough, f"on {subject.name}: {numbers}"


def wanted(bar: Bar) -> str:
    """What was asked for, in words."""
    least = f" by {bar.by:g} or more" if bar.by else ""
    return f"better than {bar.than.value} in {bar.metric.value}{least}" + (", beyond chance" if bar.sure else "")
