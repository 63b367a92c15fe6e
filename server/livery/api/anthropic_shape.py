"""The JSON of /v1/messages: a message as a whole, and its events."""

from __future__ import annotations

import orjson
from orjson import Fragment

from livery.api.chat_shape import ChatShape
from livery.api.retold import Block, Retold
from livery.api.shapes import Json
from livery.generation import Usage

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class AnthropicShape(Retold):
    """POST /v1/messages. `usage` is the answer's own, and grows with it."""

    def __init__(self, chat: ChatShape, usage: Usage) -> None:
        super().__init__(chat)
        self._envelope = chat.envelope
        self._usage = usage

    def begin(self) -> None:
        self.say(
            {
                "type": "message_start",
                "message": self._message([], _stop(None), self._usage),
            }
        )
        self.say({"type": "ping"})

    def open(self, block: Block) -> None:
        self.say({"type": "content_block_start", "index": block.index, "content_block": _content(block)})

    def add(self, block: Block, piece: str, _logprobs: list[Json]) -> None:
        delta = {
            "text": {"type": "text_delta", "text": piece},
            "reasoning": {"type": "thinking_delta", "thinking": piece},
            "call": {"type": "input_json_delta", "partial_json": piece},
        }[block.kind]
        self.say({"type": "content_block_delta", "index": block.index, "delta": delta})

    def close(self, block: Block) -> None:
        if block.broken:  # it stays open: where a block of a call stops, clients make the call
            return
        self.say({"type": "content_block_stop", "index": block.index})

    def end(self, usage: Usage) -> None:
        self.say({"type": "message_delta", "delta": self._stopped(), "usage": usage_json(usage)})
        self.say({"type": "message_stop"})

    def answer(self, usage: Usage) -> Json:
        return self._message([_content(block) for block in self.blocks], self._stopped(), usage)

    def _stopped(self) -> Json:
        if self.finish_reason == "stop" and self.stop_string is not None:
            return _stop("stop_sequence", self.stop_string)
        return _stop(STOP_REASONS.get(self.finish_reason, "end_turn"))

    def _message(self, content: list[Json], stopped: Json, usage: Usage) -> Json:
        return {
            "id": self._envelope.id,
            "type": "message",
            "role": "assistant",
            "model": self._envelope.model,
            "content": content,
            **stopped,
            "usage": usage_json(usage),
        }


def _stop(reason: str | None, sequence: str | None = None) -> Json:
    """Why a message ended. The schema also requires what only Anthropic's own services have a value for: null here."""
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None, "container": None}


def usage_json(usage: Usage) -> Json:
    """What was found in the cache is counted apart from the rest of the prompt. For null see `_stop`."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }


def _content(block: Block) -> Json:
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    call = {"id": block.call_id, "name": block.name, "input": _input(block.text)}
    return {"type": "tool_use", **call, "caller": {"type": "direct"}}


def _input(arguments: str) -> Json | Fragment:
    """Arguments as an object, in their own words: whole numbers may be longer than 64 bits. Those that a model wrote
    wrong, or that were cut off, stay readable as text, and so do those that strict readers refuse all of the message
    for: halves of surrogate pairs, numbers beyond floats.
    """
    written = arguments or "{}"
    try:
        found = orjson.loads(written)
    except orjson.JSONDecodeError:
        found = None
    return Fragment(written) if isinstance(found, dict) else {"arguments": arguments}
