"""The JSON of /v1/responses: a response as a whole, and its events, each with the next number of its sequence."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec
from orjson import Fragment

from livery.api.chat_shape import ChatShape
from livery.api.errors import ApiError
from livery.api.responses_body import ResponsesBody
from livery.api.retold import Block, Retold
from livery.api.shapes import Json
from livery.generation import Usage

PREFIXES = {"text": "msg", "call": "fc", "reasoning": "rs"}  # of the ids of items


class ResponsesShape(Retold):
    """POST /v1/responses. Every block of the answer is an item of the output."""

    def __init__(self, chat: ChatShape, body: ResponsesBody) -> None:
        super().__init__(chat)
        self._envelope = chat.envelope
        self._body = body
        self._ids: list[str] = []
        self._items: list[Json] = []  # those that are complete
        self._sequence = 0

    def begin(self) -> None:
        for kind in ("created", "in_progress"):
            self._event(f"response.{kind}", response=self._response("in_progress", None))

    def open(self, block: Block) -> None:
        self._ids.append(f"{PREFIXES[block.kind]}_{uuid.uuid4().hex}")
        self._event("response.output_item.added", output_index=block.index, item=self._item(block, "in_progress"))
        if block.kind != "call":
            self._within("response.content_part.added", block, content_index=0, part=_part(block))

    def add(self, block: Block, piece: str, logprobs: list[Json]) -> None:
        if block.kind == "call":
            self._within("response.function_call_arguments.delta", block, delta=piece)
        elif block.kind == "text":
            self._within("response.output_text.delta", block, content_index=0, delta=piece, logprobs=logprobs)
        else:
            self._within("response.reasoning_text.delta", block, content_index=0, delta=piece)

    def close(self, block: Block) -> None:
        if block.broken:  # no item of the response: its text is the next one's
            item = self._item(block, "incomplete")
            self._event("response.output_item.done", output_index=block.index, item=item)
            return
        if block.kind == "call":
            self._within("response.function_call_arguments.done", block, name=block.name, arguments=block.text)
        elif block.kind == "text":
            self._within("response.output_text.done", block, content_index=0, text=block.text, logprobs=block.logprobs)
        else:
            self._within("response.reasoning_text.done", block, content_index=0, text=block.text)
        if block.kind != "call":
            self._within("response.content_part.done", block, content_index=0, part=_part(block))
        cut = self.finish_reason == "length" and block.kind != "call"  # a call is whole, or it is broken
        item = self._item(block, "incomplete" if cut else "completed")
        self._items.append(item)
        self._event("response.output_item.done", output_index=block.index, item=item)

    def end(self, usage: Usage) -> None:
        answer = self.answer(usage)
        self._event(f"response.{answer['status']}", response=answer)

    def answer(self, usage: Usage) -> Json:
        return self._response("incomplete" if self.finish_reason == "length" else "completed", usage)

    def failed(self, error: ApiError) -> Json:
        """The last event of a stream that breaks. Clients look for the facts at either place."""
        facts = error.body["error"]
        found = {name: facts[name] for name in ("code", "message", "param")}
        return {"type": "error", **found, "error": facts, "sequence_number": self._sequence}

    def _event(self, kind: str, **fields: Any) -> None:  # noqa: ANN401  (JSON)
        self.say({"type": kind, **fields, "sequence_number": self._sequence})
        self._sequence += 1

    def _within(self, kind: str, block: Block, **fields: Any) -> None:  # noqa: ANN401  (JSON)
        """An event inside an item."""
        self._event(kind, item_id=self._ids[block.index], output_index=block.index, **fields)

    def _item(self, block: Block, status: str) -> Json:
        item: Json = {"id": self._ids[block.index], "status": status}
        if block.kind == "call":
            call = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
            return {"type": "function_call", **item, **call}
        content = [] if status == "in_progress" else [_part(block)]
        if block.kind == "reasoning":
            return {"type": "reasoning", **item, "summary": [], "content": content}
        return {"type": "message", **item, "role": "assistant", "content": content}

    def _response(self, status: str, usage: Usage | None) -> Json:
        """Defaults stand where the request is silent; of a profile's the client learns from the adapter."""
        body, reasoning, text = self._body, self._body.reasoning, self._body.text
        cut = status == "incomplete"
        return {
            "id": self._envelope.id,
            "object": "response",
            "created_at": self._envelope.created,
            "completed_at": int(time.time()) if usage else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self._envelope.model,
            "output": list(self._items) if usage else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "presence_penalty": self._number("presence_penalty"),
            "frequency_penalty": self._number("frequency_penalty"),
            "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": False,
            "system_fingerprint": self._envelope.fingerprint,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": _as_sent(text.format.model_dump() if text and text.format else {"type": "text"})},
            "tool_choice": _as_sent(body.tool_choice or "auto"),
            "tools": _as_sent([tool.model_dump() for tool in body.tools or ()]),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": _usage(usage) if usage else None,
            "user": body.user,
        }

    def _number(self, name: str) -> float:
        value = (self._body.model_extra or {}).get(name)
        return float(value) if isinstance(value, int | float) else 0.0


def _as_sent(value: object) -> Fragment:
    """What a client's schemas hold may be whole numbers of more than 64 bits, which orjson doesn't write."""
    return Fragment(msgspec.json.encode(value))


def _part(block: Block) -> Json:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": block.logprobs}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        # Nobody pays for writing to the cache here, so nothing is counted as written.
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},  # thoughts count as output
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
