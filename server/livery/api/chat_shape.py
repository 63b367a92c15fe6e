"""The JSON of chat completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livery.answer_text import TokenEntry
from livery.api.logprobs_shape import chat_logprobs, prompt_logprobs, token_ids
from livery.api.shapes import Answer, Envelope, Json, ending, usage_json
from livery.generation import ChoiceDelta, EndReason, Usage
from livery.reading import CallDelta


@dataclass(frozen=True, slots=True)
class ChatShape:
    """POST /v1/chat/completions."""

    envelope: Envelope

    def opening(self, choices: int) -> list[Json]:
        return [self._chunk(index, {"role": "assistant", "content": ""}, None) for index in range(choices)]

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        said: list[Json] = []
        if delta.reasoning:
            said.append(_reasoning(delta.reasoning))
        if delta.text:
            said.append({"content": delta.text})
        if calls := [_call_delta(call) for call in delta.calls if not call.broken]:
            said.append({"tool_calls": calls})
        prompt = delta.prompt_token_ids if self.envelope.options.token_ids else None
        if not said and not delta.finish_reason and (delta.entries or prompt is not None):
            said.append({"content": ""})
        found, entries = [], delta.entries
        for one in said:
            found.append(self._chunk(delta.index, one, None, entries))
            entries = ()
        if delta.finish_reason:
            found.append(self._chunk(delta.index, {}, delta.finish_reason, entries))
        if prompt is not None:
            found[0]["prompt_token_ids"] = list(prompt)
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
        return self._choice(index, {"message": _message(answer)}, answer.finish_reason, answer.entries)

    def _chunk(self, index: int, delta: Json, reason: EndReason | None, entries: Sequence[TokenEntry] = ()) -> Json:
        return self.envelope.chunk("chat.completion.chunk", self._choice(index, {"delta": delta}, reason, entries))

    def _choice(self, index: int, said: Json, reason: EndReason | None, entries: Sequence[TokenEntry]) -> Json:
        options = self.envelope.options
        choice = {"index": index, **said, "logprobs": chat_logprobs(entries, options), **ending(reason)}
        return {**choice, "token_ids": token_ids(entries)} if options.token_ids else choice


def _message(answer: Answer) -> Json:
    """What the assistant said. Content is null only beside calls or reasoning that stand alone."""
    beside = answer.calls or answer.reasoning
    message: Json = {
        "role": "assistant",
        "content": None if beside and not answer.text else answer.text,
        "refusal": None,
        "annotations": [],
    }
    if answer.reasoning:
        message |= _reasoning(answer.reasoning)
    if answer.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls.values()
        ]
    return message


def _reasoning(text: str) -> Json:
    """Under the name that vLLM gives it now, and the one that it gave before and most clients read."""
    return {"reasoning": text, "reasoning_content": text}


def _call_delta(call: CallDelta) -> Json:
    if call.name:
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.index, "id": call.id, "type": "function", "function": function}
    return {"index": call.index, "function": {"arguments": call.arguments}}
