"""Before anything is timed: does every server answer as PEFT does? A fast wrong answer is no result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from livery_loadtest.drive import Observer
from livery_loadtest.options import Options
from livery_loadtest.record import Record
from livery_loadtest.script import Planned, Script
from livery_loadtest.session import Served
from livery_loadtest.verify import Compared, Finding, Verification, judge
from livery_loadtest.workers import measure

# Several: a server that rounds much, to 8 bits say, leaves its reference within words and may by chance go on as
# another model does, but not time and again.
PROMPTS = (
    "The best way to spend a long and quiet evening at home with a good friend is",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "Three things that every new engineer should know about distributed systems are",
)
TOKENS = 32


def requests(subject: Served) -> int:
    """How many answers `answers` asks for."""
    return len(subject.models) * len(PROMPTS)


async def answers(subject: Served, observer: Observer) -> list[Record]:
    """The greedy answers of every model of a server, one at a time. An interrupt is one: nothing was measured yet."""
    asked = [(model, prompt) for model in subject.models for prompt in PROMPTS]
    planned = [Planned(index, None, model, prompt, TOKENS) for index, (model, prompt) in enumerate(asked)]
    options = Options(streams=1, keep_text=True)
    run = await measure(Script(planned), subject.target, options, observer=observer)
    if run.interrupted:
        raise KeyboardInterrupt
    return list(run.records)


def compare(name: str, own: Sequence[Record], reference: Sequence[Record]) -> Verification:
    """Each adapter's answers beside the reference's for the adapter of its name; the bases, first, beside each other.

    What only one of them has isn't compared: `alone` names it.
    """
    compared: list[Compared] = []
    expected_of = _by_name(reference)
    mine = {key: records for key, records in _by_name(own).items() if key in expected_of}
    for key, records in mine.items():
        expected = expected_of[key]
        others = {rival[0].planned.model: rival for rival in expected_of.values() if rival is not expected}
        compared += _settled(records, expected, others)
    return Verification(name, len(mine), tuple(compared))


def alone(own: Sequence[Record], reference: Sequence[Record]) -> list[str]:
    """Adapters that one of both doesn't list; none where one serves the base alone."""
    mine, theirs = _by_name(own), _by_name(reference)
    if min(len(mine), len(theirs)) < 2:
        return []
    return [name for name in mine if name not in theirs] + [name for name in theirs if name not in mine]


def _settled(
    records: Sequence[Record], expected: Sequence[Record], others: Mapping[str, Sequence[Record]]
) -> Iterator[Compared]:
    """One model's answers, judged together: another's where they are so word for word, or to most of the prompts."""
    found = [
        judge(record, right, {model: said[place] for model, said in others.items()})
        for place, (record, right) in enumerate(zip(records, expected, strict=True))
    ]
    votes = Counter(one.as_of for one in found if one.finding is Finding.WRONG_ADAPTER)
    for place, one in enumerate(found):
        alike = one.finding is Finding.WRONG_ADAPTER and one.under_load != others[one.as_of][place].text
        by_chance = alike and 2 * votes[one.as_of] <= len(found)
        yield replace(one, finding=Finding.PARTED, as_of=one.model) if by_chance else one


def _by_name(records: Sequence[Record]) -> dict[str, list[Record]]:
    """By adapter, the base under no name; in the order in which they were asked, the base first."""
    in_order = sorted(records, key=lambda record: record.planned.index)
    found: dict[str, list[Record]] = {}
    for record in in_order:
        base = record.planned.model == in_order[0].planned.model
        found.setdefault("" if base else record.planned.model, []).append(record)
    return found
