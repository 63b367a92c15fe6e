"""What answers have in common, whichever route words them, and the JSON of models. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from livery.generation import ChoiceDelta, StopReason, Usage
from livery.service import ModelCard

Json = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """All text of one choice."""

    text: str = ""
    finish_reason: StopReason | None = None


class Shape(Protocol):
    """How one route words its answer."""

    def opening(self, choices: int) -> list[Json]:
        """Chunks that come before any text."""
        ...

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        """Chunks for one piece of text."""
        ...

    def closing(self, usage: Usage) -> list[Json]:
        """Chunks that come after all text, as the usage where the client asked for it."""
        ...

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        """The answer that isn't streamed."""
        ...


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all chunks of an answer repeat. `created` is a Unix time, `model` the name the client used."""

    id: str
    created: int
    model: str
    fingerprint: str
    include_usage: bool
    service_tier: str | None = None  # said where the client asked for one

    def wrap(self, kind: str, choices: list[Json]) -> Json:
        wrapped = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        return wrapped if self.service_tier is None else {**wrapped, "service_tier": self.service_tier}

    def chunk(self, kind: str, choice: Json) -> Json:
        chunk = self.wrap(kind, [choice])
        if self.include_usage:
            chunk["usage"] = None
        return chunk


def usage_json(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def model_json(card: ModelCard) -> Json:
    """`root` is the name again: where files are is nobody's business."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "livery",
        "root": card.id,
        "parent": card.parent,
        "max_model_len": card.max_model_len,
        "permission": [],
        "digest": card.digest,
    } | ({} if card.task is None else {"task": card.task})
