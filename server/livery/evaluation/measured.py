"""From what each piece came to, to measures with intervals, and differences from the base and the active version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from livery.evaluation.report import NATS, PERPLEXITY, Measure, Row, Versus
from livery.evaluation.scorer import Variant
from livery.evaluation.statistics import Draws, Floats, wilson

ACCURACY, ACCURACY_NORM, EXACT = "accuracy", "accuracy_norm", "exact_match"
LOWER = {PERPLEXITY, NATS, "byte_perplexity", "bits_per_byte"}  # less of them is better


@dataclass(frozen=True, slots=True)
class Columns:
    """One variant's numbers by piece: each metric is the sum of one column over that of another, as `figure` makes it.

    `columns` are by metric, `weights` what a piece counts: tokens of a text, 1 for an item. `primary` is the metric by
    which variants are compared.
    """

    primary: str
    columns: Mapping[str, Floats]
    weights: Mapping[str, Floats]


def of_text(losses: Sequence[float], tokens: Sequence[int], nbytes: Sequence[int]) -> Columns:
    """`losses` are -ln p of each piece's tokens together."""
    nats, per_token, per_byte = (np.asarray(values, dtype=np.float64) for values in (losses, tokens, nbytes))
    columns = {PERPLEXITY: nats, NATS: nats, "byte_perplexity": nats, "bits_per_byte": nats / math.log(2)}
    weights = {PERPLEXITY: per_token, NATS: per_token, "byte_perplexity": per_byte, "bits_per_byte": per_byte}
    return Columns(NATS, columns, weights)


def of_items(scores: Mapping[str, Sequence[float]], primary: str) -> Columns:
    """Scores of items, from 0 to 1, by metric."""
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    return Columns(primary, columns, {name: np.ones_like(values) for name, values in columns.items()})


def rows(found: Mapping[str, Columns], variants: Sequence[Variant], *, lower: bool = False) -> list[Row]:
    """One for each variant, in their order; without measures where there is nothing of it.

    `lower`: of all metrics less is better, not only of those in LOWER.
    """
    made = []
    for variant in variants:
        mine = found.get(variant.label)
        if mine is None:
            made.append(Row(variant.label))
            continue
        draws = Draws(len(mine.columns[mine.primary]))
        others = [found[one.label] for one in beside(variant, variants) if one.label in found]
        names = [one.label for one in beside(variant, variants) if one.label in found]
        made.append(
            Row(
                variant.label,
                {metric: _measure(mine, metric, draws) for metric in mine.columns},
                [
                    _versus(mine, other, label, metric, draws, lower or metric in LOWER)
                    for other, label in zip(others, names, strict=True)
                    for metric in _compared(mine)
                ],
            )
        )
    return made


def beside(variant: Variant, variants: Sequence[Variant]) -> list[Variant]:
    """What a variant is compared with: the base, and what its name serves now."""
    return [
        one
        for one in variants
        if one is not variant and (one.role == "base" or (one.role == "active" and one.name == variant.name))
    ]


def _compared(columns: Columns) -> list[str]:
    """Of a text the nats alone: perplexity is their exponential."""
    return [NATS] if columns.primary == NATS else list(columns.columns)


def _measure(columns: Columns, metric: str, draws: Draws) -> Measure:
    above, below = columns.columns[metric], columns.weights[metric]
    value = float(above.sum() / below.sum())
    if columns.primary != NATS and np.isin(above, (0.0, 1.0)).all():
        return Measure(value, wilson(float(above.sum()), len(above)))
    interval = draws.ratio(above, below)
    if metric in (PERPLEXITY, "byte_perplexity"):
        return Measure(_exp(value), interval and (_exp(interval[0]), _exp(interval[1])))
    return Measure(value, interval)


def _versus(mine: Columns, other: Columns, than: str, metric: str, draws: Draws, lower: bool) -> Versus:
    apart, below = mine.columns[metric] - other.columns[metric], mine.weights[metric]
    interval = draws.ratio(apart, below) if apart.any() else None  # where none differs, there is nothing to draw
    better = None
    if interval is not None and not interval[0] <= 0 <= interval[1]:
        better = (interval[1] < 0) == lower
    return Versus(than, metric, float(apart.sum() / below.sum()), interval, better)


def _exp(nats: float) -> float:
    """Of a loss beyond all numbers, the largest there is."""
    return math.exp(min(nats, 700.0))
