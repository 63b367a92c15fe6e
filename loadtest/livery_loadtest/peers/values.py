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
    """The greedy answer of every model of a server, one at a time."""
    planned = [Planned(index, None, model, PROMPT, TOKENS) for index, model in enumerate(subject.models)]
    options = Options(streams=1, keep_text=True)
    run = await measure(Script(planned), subject.target, options, observer=observer)
    return list(run.records)


def compare(name: str, own: Sequence[Record], reference: Sequence[Record]) -> Verification:
    """Each model's answer beside the reference's for the model in its place, the base first.

    An answer that is the reference's of another model is a wrong adapter.
    """
    compared = []
    for record, expected in zip(own, reference, strict=False):
        others = {other.planned.model: other for other in reference if other is not expected}
        compared.append(judge(record, expected, others))
    return Verification(name, len(compared), tuple(compared))
