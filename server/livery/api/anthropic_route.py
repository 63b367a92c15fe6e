"""POST /v1/messages and its counting of tokens: a chat completion in Anthropic's words."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from livery.api.answers import answers
from livery.api.anthropic_answers import AnthropicMessage, InputTokens, in_anthropics_words
from livery.api.anthropic_body import NAMES, CountTokensBody, MessagesBody
from livery.api.anthropic_shape import AnthropicShape
from livery.api.context import ContextDep
from livery.api.errors import ApiError, in_anthropic_words
from livery.api.openai import count, retell
from livery.api.reading import AnswerRoute, beside_body
from livery.api.responses import json_response
from livery.api.retold import params_named
from livery.api.sse import Dialect, named_event

router = APIRouter(route_class=AnswerRoute)


def _failed(error: ApiError) -> bytes:
    return named_event(in_anthropic_words(error).body)


DIALECT = Dialect(named_event, b"", _failed)


@router.post("/v1/messages", responses=in_anthropics_words(answers(AnthropicMessage, streamed=True)))
async def create_message(body: MessagesBody, request: Request, context: ContextDep) -> Response:
    body.check()
    chat = await beside_body(request, body.to_chat)
    with params_named(NAMES):
        return await retell(chat, "msg", AnthropicShape, lambda _: DIALECT, request, context)


@router.post("/v1/messages/count_tokens", responses=in_anthropics_words(answers(InputTokens)))
async def count_tokens(body: CountTokensBody, request: Request, context: ContextDep) -> Response:
    body.check()
    chat = await beside_body(request, body.to_chat)
    with params_named(NAMES):
        return json_response({"input_tokens": await count(chat, request, context)})
