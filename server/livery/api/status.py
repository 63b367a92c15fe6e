"""Routes for probes and scrapers: health, readiness, metrics, version."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from livery import __version__
from livery.api.context import ContextDep
from livery.engine.base import EngineDead
from livery.refusals import Draining, NotReady

router = APIRouter()


@router.get("/health")
async def health(context: ContextDep) -> Response:
    """Is this process worth keeping? Only a dead engine says no; a slow one may be in a long step."""
    try:
        await context.service.snapshot()
    except NotReady:
        return _json({"status": "busy"})
    except EngineDead:
        raise NotReady from None
    return _json({"status": "ok"})


@router.get("/ready")
async def ready(context: ContextDep) -> Response:
    """Should new requests come here? Proved by an answer from the engine's own loop."""
    if context.service.draining:
        raise Draining
    try:
        await context.service.snapshot()
    except EngineDead:
        raise NotReady from None
    return _json({"status": "ready"})


@router.get("/ping")
async def ping() -> Response:
    return _json({})


@router.get("/version")
async def version() -> Response:
    return _json({"version": __version__})


@router.get("/metrics")
async def metrics(context: ContextDep) -> Response:
    """The engine's own series are left out while it doesn't answer; the rest is always there."""
    try:
        snapshot = await context.service.snapshot()
    except (NotReady, EngineDead):
        snapshot = None
    text = await asyncio.to_thread(context.service.metrics.render, snapshot)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def _json(data: object) -> Response:
    return Response(orjson.dumps(data), media_type="application/json")
