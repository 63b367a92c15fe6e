"""The JSON of chat completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from livery.answer_text import TokenEntry
from livery.api.logprobs_shape import chat_content, chat_logprobs, chat_token, token_ids
from livery.api.shapes import Answer, Envelope, Json, ending, usage_json, written
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
        said += [{"tool_calls": [_call_delta(call)]} for call in _joined(delta.calls)]
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

    def token(self, entry: TokenEntry) -> object:
        return None if self.envelope.options.logprobs is None else chat_token(entry, self.envelope.options)

    async def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choices = await written(self.choice, answers)
        found = {**self.envelope.wrap("chat.completion", choices), "usage": usage_json(usage)}
        options = self.envelope.options
        if options.token_ids:
            found["prompt_token_ids"] = list(answers[0].prompt_token_ids)
        if options.prompt_logprobs is not None:
            found["prompt_logprobs"] = answers[0].scores
        return found

    def choice(self, index: int, answer: Answer) -> Json:
        """One choice of the whole."""
        logprobs = chat_content(answer.tokens) if answer.tokens else None
        said = {"message": _message(answer)}
        return self._choice(index, said, answer.finish_reason, logprobs, answer.token_ids)

    def _chunk(self, index: int, delta: Json, reason: EndReason | None, entries: Sequence[TokenEntry] = ()) -> Json:
        logprobs = chat_logprobs(entries, self.envelope.options)
        choice = self._choice(index, {"delta": delta}, reason, logprobs, token_ids(entries))
        return self.envelope.chunk("chat.completion.chunk", choice)

    def _choice(
        self, index: int, said: Json, reason: EndReason | None, logprobs: Json | None, token_ids: Sequence[int]
    ) -> Json:
        choice = {"index": index, **said, "logprobs": logprobs, **ending(reason)}
        return {**choice, "token_ids": token_ids} if self.envelope.options.token_ids else choice


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


def _joined(calls: Sequence[CallDelta]) -> list[CallDelta]:
    """One delta of each call, for a chunk each: clients take the first list of a stream as it is, or its first entry
    alone, so that a second entry of the same call would be lost to them.
    """
    found: list[CallDelta] = []
    for call in calls:
        if call.broken:
            continue
        if found and found[-1].index == call.index and not call.name:
            found[-1] = replace(found[-1], arguments=found[-1].arguments + call.arguments)
        else:
            found.append(call)
    return found


def _call_delta(call: CallDelta) -> Json:
    if call.name:
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.index, "id": call.id, "type": "function", "function": function}
    return {"index": call.index, "function": {"arguments": call.arguments}}
