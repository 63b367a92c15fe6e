"""The JSON of chat completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livery.api.shapes import Answer, Envelope, Json, usage_json
from livery.generation import ChoiceDelta, StopReason, Usage


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

    def closing(self, usage: Usage) -> list[Json]:
        if not self.envelope.include_usage:
            return []
        return [{**self.envelope.wrap("chat.completion.chunk", []), "usage": usage_json(usage)}]

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
