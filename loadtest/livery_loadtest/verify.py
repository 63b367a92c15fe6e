"""Correctness under load: a sample of answers, asked for once more where nothing else runs, and compared.

The reference is any server that answers rightly: the same one when it is quiet, another, or PEFT's plain loop. Greedy
answers of one adapter may part late, where two tokens are nearly as likely and a batch rounds otherwise; an answer of
another adapter, or of the base where an adapter was dropped, parts at once, and goes on as that one's does. Pure:
whoever calls asks the reference.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from livery_loadtest.record import Record
from livery_loadtest.script import Planned, Script

CLEARLY = 8  # characters by which an answer must be more like another model's than like its own


class Finding(StrEnum):
    """How an answer under load compares with the reference's.

    PARTED: it differs, and isn't what any model says that was asked for it; NOT_LOOKED_INTO: it differs, and no other
    model was asked. WRONG_ADAPTER may be the base in an adapter's place, too. FAILED: there is none. UNANSWERED by the
    reference.
    """

    SAME = "same"
    PARTED = "parted"
    WRONG_ADAPTER = "wrong adapter"
    NOT_LOOKED_INTO = "not looked into"
    FAILED = "failed"
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
        return len(self._found(finding))

    @property
    def wrong(self) -> tuple[Compared, ...]:
        """Answers that came from another model than the one asked for."""
        return self._found(Finding.WRONG_ADAPTER)

    @property
    def failed(self) -> tuple[Compared, ...]:
        """Requests that had no answer."""
        return self._found(Finding.FAILED)

    @property
    def not_looked_into(self) -> int:
        """Answers that differ of which nobody knows whether they came from another model."""
        return self.count(Finding.NOT_LOOKED_INTO)

    def _found(self, finding: Finding) -> tuple[Compared, ...]:
        return tuple(one for one in self.compared if one.finding is finding)


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


def rivals(record: Record, records: Sequence[Record], most: int, base: str) -> list[str]:
    """Up to `most` other models whose answer it may be: the base, then those that were being answered meanwhile.

    An adapter that is dropped leaves the base; any other mix-up is with a neighbour as a rule.
    """
    found = dict.fromkeys([base])
    for other in records:
        if other.sent < record.finished and record.sent < other.finished:
            found.setdefault(other.planned.model)
    found.pop(record.planned.model, None)
    return list(found)[:most]


def suspects(chosen: Sequence[Record], references: Sequence[Record]) -> list[Record]:
    """Those of the sample whose answer isn't the reference's, the least like it first: of these others may be asked."""
    differ = [
        (_alike(record.text, reference.text), record)
        for record, reference in zip(chosen, references, strict=True)
        if reference.error is None and record.text != reference.text
    ]
    return [record for _, record in sorted(differ, key=lambda pair: pair[0])]


def judge(record: Record, reference: Record, others: Mapping[str, Record] | None) -> Compared:
    """Compare one answer with the reference's, and with what other models say to the same; None: they weren't asked.

    One that failed has its error as `under_load`.
    """
    planned = record.planned
    own = _alike(record.text, reference.text)
    as_of = planned.model
    if record.error is not None:  # what came before it failed, if anything, is no answer
        finding, as_of = Finding.FAILED, ""
    elif reference.error is not None:
        finding, as_of = Finding.UNANSWERED, ""
    elif record.text == reference.text:
        finding = Finding.SAME
    elif others is None:
        finding, as_of = Finding.NOT_LOOKED_INTO, ""
    else:
        finding = Finding.PARTED
        said = {model: _alike(record.text, other.text) for model, other in others.items() if other.error is None}
        likest = max(said, key=lambda model: said[model], default="")
        if likest and (record.text == others[likest].text or said[likest] >= own + CLEARLY):
            finding, as_of = Finding.WRONG_ADAPTER, likest
    shown = record.text if record.error is None else f"{record.error}: {record.error_message}"
    return Compared(planned.index, planned.model, finding, own, shown, reference.text, as_of)


def _alike(left: str, right: str) -> int:
    """How many characters two texts have in common from the start."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
