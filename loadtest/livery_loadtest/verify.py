"""Correctness under load: a sample of answers, asked for once more where nothing else runs, and compared.

The reference is any server that answers rightly: the same one when it is quiet, another, or PEFT's plain loop. Greedy
answers of one adapter may part late, where two tokens are nearly as likely and a batch rounds otherwise; an answer of
another adapter parts at once, and goes on as that one's does. Pure: whoever calls asks the reference.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from livery_loadtest.record import Record
from livery_loadtest.script import Planned, Script

CLEARLY = 8  # characters by which an answer must be more like another adapter's than like its own


class Finding(StrEnum):
    """How an answer under load compares with the reference's."""

    SAME = "same"
    PARTED = "parted"
    WRONG_ADAPTER = "wrong adapter"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Compared:
    """One answer. `alike` counts the characters both have from the start; `as_of` is the model it answered as."""

    index: int
    model: str
    finding: Finding
    alike: int
    under_load: str
    reference: str
    as_of: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a sample showed. `models` is how many different ones were in it."""

    reference: str
    models: int
    compared: tuple[Compared, ...]

    def count(self, finding: Finding) -> int:
        return sum(one.finding is finding for one in self.compared)

    @property
    def wrong(self) -> tuple[Compared, ...]:
        """Answers that came from another adapter than the one asked for."""
        return tuple(one for one in self.compared if one.finding is Finding.WRONG_ADAPTER)


def choose(records: Sequence[Record], most: int, seed: int) -> list[Record]:
    """Up to `most` whole answers that can be asked for again, one model after the other so that rare ones are in it.

    Later turns of a conversation depend on answers before them, and clients that left have none: they stay out.
    """
    usable = [r for r in records if r.error is None and not r.left and r.planned.follows is None and r.text]
    by_model: dict[str, list[Record]] = {}
    for record in random.Random(seed).sample(usable, len(usable)):
        by_model.setdefault(record.planned.model, []).append(record)
    chosen: list[Record] = []
    while by_model and len(chosen) < most:
        for model in sorted(by_model):
            chosen.append(by_model[model].pop())
            if not by_model[model]:
                del by_model[model]
    return chosen[:most]


def replayed(asked: Sequence[tuple[Record, Sequence[str]]]) -> Script:
    """The requests of these records one after the other, each for all of the models beside it."""
    requests: list[Planned] = []
    for record, models in asked:
        for model in models:
            requests.append(replace(record.planned, index=len(requests), at=None, model=model, leave_after=None))
    return Script(requests)


def rivals(record: Record, records: Sequence[Record], most: int) -> list[str]:
    """Up to `most` other models that were being answered at the same time: a mix-up is one of these as a rule."""
    found: dict[str, None] = {}
    for other in records:
        if (
            other.sent < record.finished
            and record.sent < other.finished
            and other.planned.model != record.planned.model
        ):
            found.setdefault(other.planned.model)
    return list(found)[:most]


def suspects(chosen: Sequence[Record], references: Sequence[Record]) -> list[Record]:
    """Those of the sample whose answer isn't the reference's: only these are worth asking other models for."""
    pairs = zip(chosen, references, strict=True)
    return [record for record, reference in pairs if reference.error is None and record.text != reference.text]


def judge(record: Record, reference: Record, others: Mapping[str, Record]) -> Compared:
    """Compare one answer with the reference's, and with what other models say to the same."""
    planned = record.planned
    own = _alike(record.text, reference.text)
    if reference.error is not None:
        finding, as_of = Finding.UNANSWERED, ""
    elif record.text == reference.text:
        finding, as_of = Finding.SAME, planned.model
    else:
        said = {model: _alike(record.text, other.text) for model, other in others.items() if other.error is None}
        as_of = max(said, key=lambda model: said[model], default="")
        wrong = bool(as_of) and (record.text == others[as_of].text or said[as_of] >= own + CLEARLY)
        finding = Finding.WRONG_ADAPTER if wrong else Finding.PARTED
        as_of = as_of if wrong else planned.model
    return Compared(planned.index, planned.model, finding, own, record.text, reference.text, as_of)


def _alike(left: str, right: str) -> int:
    """How many characters two texts have in common from the start."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
