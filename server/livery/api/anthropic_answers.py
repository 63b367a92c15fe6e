"""What `GET /openapi.json` says of answers in Anthropic's shape."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from livery.api.answers import Responses


class AnthropicMessage(BaseModel):
    """A message, as Anthropic's API has it."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    stop_details: None
    container: None
    usage: dict[str, Any]


class InputTokens(BaseModel):
    """What a message would read."""

    input_tokens: int


class AnthropicErrorFacts(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    """What went wrong, in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorFacts


def in_anthropics_words(told: Responses) -> Responses:
    """The same for a route whose errors have Anthropic's shape."""
    failed = {"model": AnthropicError, "description": " ".join((AnthropicError.__doc__ or "").split())}
    return {**told, **{status: dict(failed) for status in ("4XX", "5XX")}}
