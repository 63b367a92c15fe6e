"""The routes OpenAI clients use: chat completions, completions, models."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from typing import TypeVar

from fastapi import APIRouter, Request, Response

from livery.api.answers import ChatCompletion, Model, ModelList, TextCompletion, answers
from livery.api.boundary import RequestRecord
from livery.api.chat_shape import ChatShape
from livery.api.context import Context, ContextDep, caller_of
from livery.api.reading import AnswerRoute, beside_body
from livery.api.responses import json_response
from livery.api.schemas import ChatCompletionBody, CompletionBody, GenerationBody
from livery.api.shapes import Answer, Envelope, Shape, model_json, usage_json
from livery.api.sse import OPENAI, Dialect, EventStream
from livery.api.text_shape import TextShape
from livery.api.timeouts import until
from livery.generation import Generation, Usage
from livery.jobs import Job
from livery.service import OpenedJob

router = APIRouter(route_class=AnswerRoute)

SERVICE_TIER = "default"
TOLD_AT_ONCE = 2000  # log-probabilities, a millisecond or two of the event loop

S = TypeVar("S", bound=Shape)


@router.post("/v1/chat/completions", responses=answers(ChatCompletion, streamed=True))
async def chat_completions(body: ChatCompletionBody, request: Request, context: ContextDep) -> Response:
    job = await _job(body, _id("chatcmpl"), "messages", request, context)
    return await _answer(job, lambda envelope, _: (ChatShape(envelope), OPENAI), body, request, context)


@router.post("/v1/completions", responses=answers(TextCompletion, streamed=True))
async def completions(body: CompletionBody, request: Request, context: ContextDep) -> Response:
    job = await _job(body, _id("cmpl"), "prompt", request, context)
    return await _answer(job, lambda envelope, _: (TextShape(envelope), OPENAI), body, request, context)


@router.get("/v1/models", responses=answers(ModelList))
async def list_models(request: Request, context: ContextDep) -> Response:
    cards = await context.service.models(caller_of(request))
    return json_response({"object": "list", "data": [model_json(card) for card in cards]})


@router.get("/v1/models/{model:path}", responses=answers(Model))
async def retrieve_model(model: str, request: Request, context: ContextDep) -> Response:
    return json_response(model_json(await context.service.model(model, caller_of(request))))


async def retell(
    chat: ChatCompletionBody,
    prefix: str,
    make: Callable[[ChatShape, Usage], S],
    dialect: Callable[[S], Dialect],
    request: Request,
    context: Context,
) -> Response:
    """Answer a chat completion in another API's words.

    `make` gives the shape of the answer, from the chat's and the usage that grows with it.
    """
    job = await _job(chat, _id(prefix), "messages", request, context)

    def shaped(envelope: Envelope, usage: Usage) -> tuple[S, Dialect]:
        shape = make(ChatShape(envelope), usage)
        return shape, dialect(shape)

    return await _answer(job, shaped, chat, request, context)


async def count(chat: ChatCompletionBody, request: Request, context: Context) -> int:
    """Tokens that a chat completion would read."""
    job = await _job(chat, _id("count"), "messages", request, context)
    tokens = await context.service.tokenize(job, strings=False)
    return tokens.count


async def _job(
    body: ChatCompletionBody | CompletionBody, request_id: str, param: str, request: Request, context: Context
) -> Job:
    caller = caller_of(request, body.user)

    def make() -> tuple[Job, list[str]]:
        body.check()
        ends = until(request, body.timeout, context.request_timeout_s)
        job = Job(body.model_name, body.to_prompts(), body.to_options(), request_id, param, caller, ends)
        return job, body.unknown_fields

    job, unknown = await beside_body(request, make)
    context.unknown_fields.met(unknown)
    return job


def _id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def _envelope(job: Job, opened: OpenedJob, body: GenerationBody, context: Context) -> Envelope:
    name = job.model or context.service.base_name
    tier = None if body.service_tier is None else SERVICE_TIER
    return Envelope(job.request_id, int(time.time()), name, opened.fingerprint, body.include_usage, job.options, tier)


async def _answer(
    job: Job,
    shaped: Callable[[Envelope, Usage], tuple[Shape, Dialect]],
    body: GenerationBody,
    request: Request,
    context: Context,
) -> Response:
    """Open a job, and stream or collect it in the shape made for it; it is closed whatever happens."""
    opened = await context.service.open(job)
    generation = opened.generation
    record: RequestRecord = request.state.record
    record.served_by, record.meter = opened.in_full, generation.meter
    headers = {"x-livery-adapter": opened.served_by}

    def close() -> None:
        generation.close()
        record.prompt_tokens = generation.usage.prompt_tokens
        record.completion_tokens = generation.usage.completion_tokens
        record.first_token_s = generation.meter.first_token_s
        record.outcome = generation.meter.outcome or "-"

    with ExitStack() as closing:
        closing.callback(close)
        shape, dialect = shaped(_envelope(job, opened, body, context), generation.usage)
        if body.stream:
            chunks = _chunks(shape, generation, body, dialect)
            stream = EventStream(chunks, headers, close, context.keep_alive_s, dialect=dialect)
            closing.pop_all()  # from here on it is the stream that closes
            return stream
        answers = await _collect(generation, shape)
    return json_response(await shape.whole(answers, generation.usage), headers=headers)


async def _chunks(
    shape: Shape, generation: Generation, body: GenerationBody, dialect: Dialect
) -> AsyncGenerator[bytes]:
    """The events of a stream, up to but without `[DONE]`."""
    opened = False
    async with aclosing(generation.deltas()) as deltas:
        async for delta in deltas:
            parts = shape.chunks(delta) if opened else [*shape.opening(generation.choices), *shape.chunks(delta)]
            opened = True
            if body.continuous_usage:
                parts = [{**part, "usage": usage_json(generation.usage)} for part in parts]
            yield b"".join(map(dialect.event, parts))
    yield b"".join(map(dialect.event, shape.closing(generation.usage)))


async def _collect(generation: Generation, shape: Shape) -> list[Answer]:
    """All of every choice. Of many log-probabilities that come together some are told at a time: others have turns."""
    answers = [Answer(shape.token) for _ in range(generation.choices)]
    told = 0  # since others had theirs
    async with aclosing(generation.deltas()) as deltas:
        async for delta in deltas:
            answer = answers[delta.index]
            answer.take(delta)
            for take, entries in ((answer.take_token, delta.entries), (answer.take_score, delta.scores)):
                for entry in entries:
                    take(entry)
                    told += 1 + len(entry.top)
                    if told >= TOLD_AT_ONCE:
                        await asyncio.sleep(0)
                        told = 0
    return answers
