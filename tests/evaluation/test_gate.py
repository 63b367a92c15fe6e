"""A gain that meets the bar exactly passes it, whatever floating point makes of the two shares."""

from __future__ import annotations

import pytest

from livery.evaluation import statistics
from livery.evaluation.gate import Bar, Metric, Than, better
from livery.evaluation.measured import ACCURACY, of_items, rows
from livery.evaluation.report import SubjectReport
from livery.evaluation.scorer import BASE_LABEL, Variant


def passes(right: int, more: int, items: int, by: str) -> bool:
    """Whether `right + more` of so many items are enough where the base has `right`; `by` as it is typed."""
    variants = (Variant(BASE_LABEL, role="base"), Variant("a@2", "a", "candidate", 2))
    counts = dict(zip(("a@2", BASE_LABEL), (right + more, right), strict=True))
    found = {
        label: of_items({ACCURACY: [1.0] * count + [0.0] * (items - count)}, ACCURACY)
        for label, count in counts.items()
    }
    subject = SubjectReport("birds", "choice", ACCURACY, False, items, 0, 0, rows(found, variants))
    return better(subject, "a@2", BASE_LABEL, Bar(Than.base, Metric.accuracy, (), float(by)))[0]


@pytest.mark.parametrize("items", [20, 40, 100])
@pytest.mark.parametrize(("by", "percent"), [("0.01", 1), ("0.05", 5), ("0.1", 10)])
def test_a_gain_as_large_as_was_asked_for_is_enough(
    items: int, by: str, percent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 1)  # intervals are not what is looked at
    least = -(-percent * items // 100)
    starts = range(items - least + 1)
    assert [right for right in starts if not passes(right, least, items, by)] == []
    assert not any(passes(right, least - 1, items, by) for right in starts)
