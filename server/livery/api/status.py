"""Routes for probes, scrapers and people who look on: health, readiness, metrics, version, and how everything is."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from livery import __version__
from livery.api.answers import Alive, ServerLoad, ServerVersion, Standing, answers, plain
from livery.api.boundary import RequestRecord
from livery.api.context import ContextDep
from livery.api.responses import json_response
from livery.api.status_answers import ServerStatus
from livery.engine.base import EngineDead
from livery.refusals import Draining, NotReady
from livery.scrape import scraped
from livery.service import GenerationService
from livery.status_rows import MAX_PAGE, Column, Wanted

probes = APIRouter()  # anybody may call these: they say nothing but whether requests should come here
scraping = APIRouter()
router = APIRouter()


@probes.get("/health", responses=answers(Standing))
@probes.head("/health", include_in_schema=False)
async def health(context: ContextDep) -> Response:
    """Is this process worth keeping? One whose engine is slow or being restarted is."""
    return json_response({"status": await context.service.readiness.health()})


@probes.get("/ready", responses=answers(Standing))
@probes.head("/ready", include_in_schema=False)
async def ready(context: ContextDep) -> Response:
    """Should new requests come here? Proved by an answer from the engine's own loop."""
    if context.service.draining:
        raise Draining
    try:
        await context.service.readiness.ready()
    except EngineDead:
        raise NotReady from None
    return json_response({"status": "ready"})


@probes.get("/ping", responses=answers(Alive))
@probes.head("/ping", include_in_schema=False)
@probes.post("/ping", name="ping_by_post", responses=answers(Alive))
async def ping() -> Response:
    """Is anybody there? As SageMaker asks it."""
    return json_response({})


@router.get("/load", responses=answers(ServerLoad))
async def load(request: Request, context: ContextDep) -> Response:
    """Answers under way or waiting, under vLLM's name: the tenant's own, or all to the operator."""
    record: RequestRecord = request.state.record
    return json_response({"server_load": await context.service.open_to(record.principal)})


@router.get("/v1/status", responses=answers(ServerStatus))
async def status(
    request: Request,
    context: ContextDep,
    search: Annotated[str, Query(max_length=256)] = "",
    sort: Column = "name",
    order: Literal["asc", "desc"] = "asc",
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    limit: Annotated[int, Query(ge=0, le=MAX_PAGE)] = 100,
) -> Response:
    """How everything is at this moment: what the console shows. `search` is part of an adapter's name."""
    record: RequestRecord = request.state.record
    wanted = Wanted(search, sort, order == "desc", offset, limit)
    return json_response(await context.overview.status(record.principal, wanted))


@router.get("/version", responses=answers(ServerVersion))
async def version() -> Response:
    return json_response({"version": __version__})


@scraping.get(
    "/metrics",
    response_class=Response,
    responses=plain("Series for Prometheus.", "livery_adapters_registered 5.0"),
)
async def metrics(context: ContextDep) -> Response:
    """Series of the engine or the registry are left out while it doesn't answer; the rest is always there."""
    return await series(context.service)


async def series(service: GenerationService) -> Response:
    """The answer of /metrics."""
    return Response(await scraped(service), headers={"content-type": CONTENT_TYPE_LATEST})
