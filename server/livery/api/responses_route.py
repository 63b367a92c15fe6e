"""POST /v1/responses, stateless: a chat completion in the words of OpenAI's newer API."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from livery.api.answers import ResponseObject, answers
from livery.api.context import ContextDep
from livery.api.openai import retell
from livery.api.reading import AnswerRoute, beside_body
from livery.api.responses_body import NAMES, ResponsesBody
from livery.api.responses_shape import ResponsesShape
from livery.api.retold import params_named
from livery.api.sse import Dialect, named_event

router = APIRouter(route_class=AnswerRoute)


@router.post("/v1/responses", responses=answers(ResponseObject, streamed=True))
async def create_response(body: ResponsesBody, request: Request, context: ContextDep) -> Response:
    body.check()
    chat = await beside_body(request, body.to_chat)
    with params_named(NAMES):
        return await retell(chat, "resp", lambda shape, _: ResponsesShape(shape, body), _dialect, request, context)


def _dialect(shape: ResponsesShape) -> Dialect:
    return Dialect(named_event, b"", lambda error: named_event(shape.failed(error)))
