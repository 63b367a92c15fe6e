"""Intervals hold what they promise, and differences are over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from livery.evaluation.measured import of_items, of_text, rows
from livery.evaluation.report import NATS
from livery.evaluation.scorer import BASE_LABEL, Variant
from livery.evaluation.statistics import DRAWS, Draws, wilson

BASE, ACTIVE, NEW, OTHER = (
    Variant(BASE_LABEL, role="base"),
    Variant("a", "a", "active", 1),
    Variant("a@2", "a", "candidate", 2),
    Variant("b", "b", "active", 1),
)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """The mean loss of texts of 40 windows whose true mean is known: 95 % of the intervals hold it, about."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        losses = rng.gamma(4.0, 0.5, 40)  # mean 2
        interval = Draws(40).ratio(losses, np.ones(40))
        assert interval is not None
        held += interval[0] <= 2.0 <= interval[1]
    assert 178 <= held <= 199


@pytest.mark.parametrize(("right", "items"), [(0, 5), (5, 5), (3, 10), (61, 200)])
def test_a_share_has_wilsons_interval(right: int, items: int) -> None:
    """Its ends are where the share that was found is 1.96 standard errors away, by the errors of a share there."""
    for end in wilson(right, items):
        away = abs(right / items - end) / math.sqrt(end * (1 - end) / items) if 0 < end < 1 else 0
        assert away == pytest.approx(1.96, abs=1e-3) or end == pytest.approx(right / items, abs=1e-9)


def test_few_pieces_have_no_interval_and_many_are_drawn_in_parts() -> None:
    assert Draws(4).ratio(np.ones(4), np.ones(4)) is None
    many = 2 * (1 << 22) // DRAWS
    found = Draws(many).ratio(np.arange(many, dtype=float), np.ones(many))
    assert found is not None
    assert found[0] < (many - 1) / 2 < found[1]


def test_a_version_is_compared_with_the_base_and_with_what_its_name_serves() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(50, 60, 30)
    base = tokens * 2.0 + rng.normal(0, 20, 30)
    made = {
        BASE_LABEL: of_text(base, tokens, tokens * 3),
        "a": of_text(base - 10 + rng.normal(0, 1, 30), tokens, tokens * 3),
        "a@2": of_text(base - 5 + rng.normal(0, 1, 30), tokens, tokens * 3),
    }
    found = {row.label: row for row in rows(made, (BASE, ACTIVE, NEW, OTHER))}
    assert found["b"].measures == {}
    assert [one.than for one in found["a"].versus] == [BASE_LABEL]
    assert [(one.than, one.metric, one.better) for one in found["a@2"].versus] == [
        (BASE_LABEL, NATS, True),
        ("a", NATS, False),
    ]
    (than_base, than_active) = found["a@2"].versus
    assert than_base.difference == pytest.approx(-5 / 55, rel=0.1)
    assert than_active.interval is not None
    width = than_active.interval[1] - than_active.interval[0]
    alone = found["a@2"].measures[NATS].interval
    assert alone is not None
    assert width < (alone[1] - alone[0]) / 5, "pairs tell more than two texts apart"


def test_accuracy_is_better_where_it_is_more() -> None:
    scores = {BASE_LABEL: [0.0] * 30, "a": [1.0] * 25 + [0.0] * 5}
    found = rows({label: of_items({"accuracy": right}, "accuracy") for label, right in scores.items()}, (BASE, ACTIVE))
    (versus,) = found[1].versus
    assert (versus.better, versus.difference) == (True, pytest.approx(25 / 30))
    (worse,) = rows(
        {label: of_items({"loss": right}, "loss") for label, right in scores.items()}, (BASE, ACTIVE), lower=True
    )[1].versus
    assert worse.better is False
