"""The JSON of chat completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livery.answer_text import StopReason, TokenEntry
from livery.api.logprobs_shape import chat_logprobs, prompt_logprobs, token_ids
from livery.api.shapes import Answer, Envelope, Json, usage_json
from livery.generation import ChoiceDelta, Usage


@dataclass(frozen=True, slots=True)
class ChatShape:
    """POST /v1/chat/completions."""

    envelope: Envelope

    def opening(self, choices: int) -> list[Json]:
        return [self._chunk(index, {"role": "assistant", "content": ""}, None) for index in range(choices)]

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        found = []
        entries = delta.entries
        if delta.text or (entries and not delta.finish_reason):
            found.append(self._chunk(delta.index, {"content": delta.text}, None, entries))
            entries = ()
        if delta.finish_reason:
            found.append(self._chunk(delta.index, {}, delta.finish_reason, entries))
        if self.envelope.options.token_ids and delta.prompt_token_ids is not None:
            found[0]["prompt_token_ids"] = list(delta.prompt_token_ids)
        return found

    def closing(self, usage: Usage) -> list[Json]:
        if not self.envelope.include_usage:
            return []
        return [{**self.envelope.wrap("chat.completion.chunk", []), "usage": usage_json(usage)}]

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choices = [self._whole(index, answer) for index, answer in enumerate(answers)]
        found = {**self.envelope.wrap("chat.completion", choices), "usage": usage_json(usage)}
        options = self.envelope.options
        if options.token_ids:
            found["prompt_token_ids"] = list(answers[0].prompt_token_ids)
        if options.prompt_logprobs is not None:
            found["prompt_logprobs"] = prompt_logprobs(answers[0].scores)
        return found

    def _whole(self, index: int, answer: Answer) -> Json:
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
        return self._choice(index, {"message": message}, answer.finish_reason, answer.entries)

    def _chunk(self, index: int, delta: Json, reason: StopReason | None, entries: Sequence[TokenEntry] = ()) -> Json:
        return self.envelope.chunk("chat.completion.chunk", self._choice(index, {"delta": delta}, reason, entries))

    def _choice(self, index: int, said: Json, reason: StopReason | None, entries: Sequence[TokenEntry]) -> Json:
        options = self.envelope.options
        choice = {"index": index, **said, "logprobs": chat_logprobs(entries, options), "finish_reason": reason}
        return {**choice, "token_ids": token_ids(entries)} if options.token_ids else choice
