"""The messages of a chat as clients send them, and as the chat template sees them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from livery.api.body import Body
from livery.api.ignored import ignored
from livery.api.plain_json import check_count, check_plain
from livery.api.unsupported import UNSUPPORTED_IN_MESSAGES, refuse_unsupported
from livery.chat_template import REASONING, Message
from livery.refusals import InvalidParameter, UnsupportedParameter

Thought = Annotated[str, Field(max_length=1 << 22)]


class TextPart(Body):
    type: str
    text: str | None = None
    refusal: Any = None


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    # What the model thought before it said this, under any name that clients send it by.
    reasoning_content: Thought | None = None
    reasoning: Thought | None = None
    thinking: Thought | None = None
    # Of answers that come back as history:
    refusal: Any = ignored("a refusal is told as a part of content")
    annotations: Any = ignored("text only")

    unsupported = UNSUPPORTED_IN_MESSAGES


def message_of(message: ChatMessage, at: int) -> Message:
    """One message as the template sees it: plain data, text content only."""
    refuse_unsupported(message.model_extra or {}, message.unsupported, f"messages.{at}.")
    plain: dict[str, object] = {"role": message.role, "content": _content(message, at)}
    for name in ("name", "tool_call_id", *REASONING):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        plain["tool_calls"] = [_tool_call(call, f"messages.{at}.tool_calls.{index}") for index, call in calls]
    return plain


def _content(message: ChatMessage, at: int) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role != "assistant":
            raise InvalidParameter(f"A {message.role} message needs content.", f"messages.{at}.content")
        return ""
    texts = []
    for index, part in enumerate(message.content):
        param = f"messages.{at}.content.{index}"
        if part.type not in ("text", "refusal"):
            raise UnsupportedParameter(f"Content parts of type {part.type[:64]!r} are not supported; send text.", param)
        text = part.text if part.type == "text" else part.refusal
        if not isinstance(text, str):
            raise InvalidParameter("A text part needs text.", f"{param}.{part.type}")
        texts.append(text)
    return "\n".join(texts)


def _tool_call(call: dict[str, Any], at: str) -> dict[str, Any]:
    """Templates expect arguments as an object, the API carries them as JSON text."""
    param = f"{at}.function.arguments"
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    check_count(function["arguments"].encode(), param)
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    except RecursionError:
        raise InvalidParameter(f"{param} is nested too deeply.", param) from None
    check_plain(arguments, param)
    return {**call, "function": {**function, "arguments": arguments}}
