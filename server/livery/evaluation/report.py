"""The document of an evaluation, `livery-eval/2`: every number with its interval, and what it was compared with.

    report = msgspec.json.decode(Path("eval.json").read_bytes(), type=Report)
    report.subject("notes.txt").row("pirate").measures["perplexity"].value

Whoever changes a field changes the number in SCHEMA.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA: Literal["livery-eval/2"] = "livery-eval/2"
Interval = tuple[float, float]

PERPLEXITY, NATS = "perplexity", "nats_per_token"  # of texts; differences are in the latter


class Measure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number, and its 95 % interval where there are pieces enough to tell."""

    value: float
    interval: Interval | None = None


class Versus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One metric of a row less that of another row, over the same pieces. `better`: None where none is shown."""

    than: str
    metric: str
    difference: float
    interval: Interval | None
    better: bool | None


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A variant on a subject. Without measures it failed, or couldn't be asked; its variant says why."""

    label: str
    measures: dict[str, Measure] = {}
    versus: list[Versus] = []


class SubjectReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text (`pieces` windows of `window` tokens) or a task (`pieces` items). `tokens` and `nbytes`: those predicted.

    `metric` is the one that variants are compared by; `lower` says that less of it is better.
    """

    name: str
    kind: Literal["text", "choice", "answer", "lm-eval"]
    metric: str
    lower: bool
    pieces: int
    tokens: int
    nbytes: int
    rows: list[Row]
    window: int = 0
    prompts: Literal["", "chat", "plain"] = ""
    shots: int = 0

    def row(self, label: str) -> Row:
        return next(row for row in self.rows if row.label == label)


class VariantReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was evaluated: the base, or a version of an adapter; `failed` says why there are no numbers of it.

    `notes` say what its numbers are not, or why a subject has none of it, in a sentence each.
    """

    label: str
    role: Literal["base", "active", "candidate"]
    name: str = ""
    version: int | None = None
    digest: str = ""
    failed: str = ""
    notes: list[str] = []


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that was found. `seconds` is from the first question to the last answer, without loading the model."""

    schema: Literal["livery-eval/2"] = SCHEMA
    livery: str
    date: str
    base: str
    base_digest: str = ""
    where: str
    seconds: float
    variants: list[VariantReport]
    subjects: list[SubjectReport]

    def subject(self, name: str) -> SubjectReport:
        return next(one for one in self.subjects if one.name == name)

    def variant(self, label: str) -> VariantReport:
        return next(one for one in self.variants if one.label == label)

    def to_json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"
