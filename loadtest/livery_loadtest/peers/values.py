"""Before anything is timed: does every server answer as PEFT does? A fast wrong answer is no result."""

from __future__ import annotations

from collections.abc import Sequence

from livery_loadtest.drive import Observer
from livery_loadtest.options import Options
from livery_loadtest.record import Record
from livery_loadtest.script import Planned, Script
from livery_loadtest.session import Served
from livery_loadtest.verify import Verification, judge
from livery_loadtest.workers import measure

PROMPT = "The best way to spend a long and quiet evening at home with a good friend is"
TOKENS = 32


async def answers(subject: Served, observer: Observer) -> list[Record]:
    """The greedy answer of every model of a server, one at a time. An interrupt is one: nothing was measured yet."""
    planned = [Planned(index, None, model, PROMPT, TOKENS) for index, model in enumerate(subject.models)]
    options = Options(streams=1, keep_text=True)
    run = await measure(Script(planned), subject.target, options, observer=observer)
    if run.interrupted:
        raise KeyboardInterrupt
    return list(run.records)


def compare(name: str, own: Sequence[Record], reference: Sequence[Record]) -> Verification:
    """Each adapter's answer beside the reference's for the adapter of its name; the bases, first, beside each other.

    An answer that is the reference's of another model is a wrong adapter. What only one of them has isn't compared:
    `alone` names it.
    """
    compared = []
    expected_of = _by_name(reference)
    for key, record in _by_name(own).items():
        if (expected := expected_of.get(key)) is not None:
            others = {other.planned.model: other for other in reference if other is not expected}
            compared.append(judge(record, expected, others))
    return Verification(name, len(compared), tuple(compared))


def alone(own: Sequence[Record], reference: Sequence[Record]) -> list[str]:
    """Adapters that one of both doesn't list; none where one serves the base alone."""
    mine, theirs = _by_name(own), _by_name(reference)
    if min(len(mine), len(theirs)) < 2:
        return []
    return [name for name in mine if name not in theirs] + [name for name in theirs if name not in mine]


def _by_name(records: Sequence[Record]) -> dict[str, Record]:
    """By adapter, the base under no name; in the order in which they were asked, the base first."""
    in_order = sorted(records, key=lambda record: record.planned.index)
    return {"" if not place else record.planned.model: record for place, record in enumerate(in_order)}
