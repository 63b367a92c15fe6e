"""The routes that give vectors, classes and scores: OpenAI's embeddings, vLLM's classify and score."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response

from livery.api.answers import Classes, Embeddings, Scores, answers
from livery.api.boundary import RequestRecord
from livery.api.context import Context, ContextDep, caller_of
from livery.api.pooling_bodies import ClassifyBody, EmbeddingBody, PoolingBody, ScoreBody
from livery.api.reading import AnswerRoute
from livery.api.timeouts import until
from livery.jobs import PoolingJob
from livery.service import OpenedPooling

router = APIRouter(route_class=AnswerRoute)

Items = Iterator[bytes]  # the JSON of each entry of an answer's data
Numbers = np.ndarray[Any, np.dtype[np.float32]]


@router.post("/v1/embeddings", responses=answers(Embeddings))
async def embeddings(body: EmbeddingBody, request: Request, context: ContextDep) -> Response:
    def items(_: OpenedPooling, __: PoolingJob, vectors: Sequence[bytes]) -> Items:
        for index, vector in enumerate(vectors):
            numbers = numbers_of(vector)
            coded = body.encoding_format == "base64"
            shown = base64.b64encode(numbers.astype("<f4").tobytes()).decode() if coded else numbers
            yield _json({"object": "embedding", "index": index, "embedding": shown})

    return await _answer(body, "embd", items, request, context)


@router.post("/classify", responses=answers(Classes))
async def classify(body: ClassifyBody, request: Request, context: ContextDep) -> Response:
    def items(opened: OpenedPooling, _: PoolingJob, vectors: Sequence[bytes]) -> Items:
        for index, vector in enumerate(vectors):
            logits = numbers_of(vector)
            probs = logits if body.use_activation is False else activated(logits)
            label = opened.labels[int(logits.argmax())]
            yield _json({"index": index, "label": label, "probs": probs, "num_classes": len(probs)})

    return await _answer(body, "classify", items, request, context)


@router.post("/v1/score", responses=answers(Scores))
@router.post("/score", include_in_schema=False)
async def score(body: ScoreBody, request: Request, context: ContextDep) -> Response:
    def items(opened: OpenedPooling, job: PoolingJob, vectors: Sequence[bytes]) -> Items:
        if opened.labels:
            scores = [_scored(numbers_of(vector), body.use_activation) for vector in vectors]
        else:
            states = [numbers_of(vector) for vector in vectors]
            scores = [float(states[one] @ states[other]) for one, other in job.pairs]
        for index, found in enumerate(scores):
            yield _json({"index": index, "object": "score", "score": found})

    return await _answer(body, "score", items, request, context)


def numbers_of(vector: bytes) -> Numbers:
    """The fp32 numbers of an engine's vector."""
    return np.frombuffer(vector, dtype=np.float32)


def activated(logits: Numbers) -> Numbers:
    """Probabilities of the classes, by softmax; of a single class by the sigmoid, as transformers' pipelines do."""
    wide = logits.astype(np.float64)
    if len(wide) == 1:
        return (1 / (1 + np.exp(-np.clip(wide, -700, 700)))).astype(np.float32)
    shares = np.exp(wide - wide.max())
    found: Numbers = (shares / shares.sum()).astype(np.float32)
    return found


def _scored(logits: Numbers, use_activation: bool | None) -> float:
    return float((logits if use_activation is False else activated(logits))[0])


def _json(item: object) -> bytes:
    return orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY)


async def _answer(
    body: PoolingBody,
    prefix: str,
    items: Callable[[OpenedPooling, PoolingJob, Sequence[bytes]], Items],
    request: Request,
    context: Context,
) -> Response:
    """Admit, wait for the vectors and write them out; closed whatever happens."""
    body.check()
    context.unknown_fields.met(body.unknown_fields)
    record: RequestRecord = request.state.record
    job = body.job(f"{prefix}-{uuid.uuid4().hex}", caller_of(request, body.user))
    job = replace(job, until=until(request, body.timeout, context.request_timeout_s))
    opened = await context.service.pool(job)
    record.served_by, usage = opened.in_full, opened.answer.usage
    record.meter = opened.answer.meter
    try:
        vectors = await opened.answer.vectors()
    finally:
        opened.answer.close()
        record.prompt_tokens, record.outcome = usage.prompt_tokens, opened.answer.meter.outcome or "-"
    envelope = {
        "id": job.request_id,
        "object": "list",
        "created": int(time.time()),
        "model": job.model or context.service.base_name,
        "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
    }
    head = orjson.dumps(envelope)[:-1] + b',"data":['
    data = await _written(items(opened, job, vectors))
    headers = {"x-livery-adapter": opened.served_by}
    return Response(head + data + b"]}", headers=headers, media_type="application/json")


async def _written(items: Items) -> bytes:
    """All of them as JSON; megabytes of numbers don't keep the event loop from others."""
    pieces = []
    for item in items:
        pieces.append(item)
        await asyncio.sleep(0)
    return b",".join(pieces)
