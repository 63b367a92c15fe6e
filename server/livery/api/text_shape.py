"""The JSON of text completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livery.api.shapes import Answer, Envelope, Json, usage_json
from livery.generation import ChoiceDelta, StopReason, Usage


@dataclass(frozen=True, slots=True)
class TextShape:
    """POST /v1/completions."""

    envelope: Envelope

    def opening(self, choices: int) -> list[Json]:
        return []

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        choice = _text_choice(delta.index, delta.text, delta.finish_reason)
        return [self.envelope.chunk("text_completion", choice)]

    def closing(self, usage: Usage) -> list[Json]:
        if not self.envelope.include_usage:
            return []
        return [{**self.envelope.wrap("text_completion", []), "usage": usage_json(usage)}]

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choices = [_text_choice(index, answer.text, answer.finish_reason) for index, answer in enumerate(answers)]
        return {**self.envelope.wrap("text_completion", choices), "usage": usage_json(usage)}


def _text_choice(index: int, text: str, reason: StopReason | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
