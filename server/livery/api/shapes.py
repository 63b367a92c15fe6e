"""What answers look like: the JSON of chat completions, text completions and models. Knows no HTTP."""

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

    def usage_chunk(self, usage: Usage) -> Json:
        """The last chunk where the client asked for usage."""
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

    def wrap(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def chunk(self, kind: str, choice: Json) -> Json:
        chunk = self.wrap(kind, [choice])
        if self.include_usage:
            chunk["usage"] = None
        return chunk


@dataclass(frozen=True, slots=True)
class ChatShape:
    """POST /v1/chat/completions."""

    envelope: Envelope

    def opening(self, choices: int) -> list[Json]:
        return [self._chunk(index, {"role": "assistant", "content": ""}, None) for index in range(choices)]

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        found = []
        if delta.text:
            found.append(self._chunk(delta.index, {"content": delta.text}, None))
        if delta.finish_reason:
            found.append(self._chunk(delta.index, {}, delta.finish_reason))
        return found

    def usage_chunk(self, usage: Usage) -> Json:
        return {**self.envelope.wrap("chat.completion.chunk", []), "usage": usage_json(usage)}

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choices: list[Json] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self.envelope.wrap("chat.completion", choices), "usage": usage_json(usage)}

    def _chunk(self, index: int, delta: Json, reason: StopReason | None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self.envelope.chunk("chat.completion.chunk", choice)


@dataclass(frozen=True, slots=True)
class TextShape:
    """POST /v1/completions."""

    envelope: Envelope

    def opening(self, choices: int) -> list[Json]:
        return []

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        choice = _text_choice(delta.index, delta.text, delta.finish_reason)
        return [self.envelope.chunk("text_completion", choice)]

    def usage_chunk(self, usage: Usage) -> Json:
        return {**self.envelope.wrap("text_completion", []), "usage": usage_json(usage)}

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choices = [_text_choice(index, answer.text, answer.finish_reason) for index, answer in enumerate(answers)]
        return {**self.envelope.wrap("text_completion", choices), "usage": usage_json(usage)}


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
    }


def _text_choice(index: int, text: str, reason: StopReason | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
