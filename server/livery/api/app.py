"""Puts the HTTP application together from its parts."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from livery import __version__
from livery.api import (
    adapters,
    admin,
    anthropic_route,
    console,
    errors,
    openai,
    pooling,
    responses_route,
    status,
    tokens,
)
from livery.api import usage as usage_route
from livery.api.access import Access
from livery.api.boundary import MAX_BODY, Boundary
from livery.api.context import Context
from livery.api.routes import Routes
from livery.api.sse import KEEP_ALIVE_S
from livery.api.unknown_fields import UnknownFields
from livery.management import AdapterManagement
from livery.overview import Overview
from livery.service import GenerationService
from livery.spans import TraceSink
from livery.tenancy import Doors, Purpose, TenantManagement, UsageStore

RATE_HEADERS = tuple(
    f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
)
# What else clients in a browser's pages read: ids, whether to try again and when, what changes and pages go on from.
EXPOSED = ("x-request-id", "request-id", "x-livery-adapter", "retry-after", "x-should-retry", "etag", "x-next-after")
ERRORS: tuple[int | str, ...] = ("4XX", "5XX")
# Every route, and who may call it. What isn't here asks for a key.
Routers = tuple[tuple[APIRouter, Purpose], ...]
ROUTERS: Routers = (
    (openai.router, "ask"),
    (responses_route.router, "ask"),
    (anthropic_route.router, "ask"),
    (pooling.router, "ask"),
    (tokens.router, "ask"),
    (usage_route.router, "ask"),
    (adapters.router, "manage"),
    (status.probes, "open"),
    (status.scraping, "scrape"),
    (status.router, "ask"),
    (console.router, "open"),
)
ADMIN_ROUTERS: Routers = ((admin.router, "operate"), (admin.scraping, "scrape"))


def create_app(
    service: GenerationService,
    management: AdapterManagement,
    doors: Doors,
    usage: UsageStore,
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
    cors_origins: Sequence[str] = (),
    root_path: str = "",
    strict_params: bool = False,
    request_timeout_s: float = 0.0,
    max_body: int = MAX_BODY,
    tracing: TraceSink | None = None,
) -> FastAPI:
    """The application over a service that is ready to take requests; pages of `cors_origins` may call it.

    `root_path` is a prefix that requests may carry, as a proxy shows the server under it. `strict_params`: unknown
    fields are refused. `request_timeout_s`: the most that a request may take, also one that names no time; 0: any.
    `max_body`: the most bytes of a request's body.
    """
    app = _application("Livery")
    unknown = UnknownFields(service.metrics, strict=strict_params)
    app.state.context = Context(service, management, usage, keep_alive_s, unknown, Overview(service), request_timeout_s)
    _mount(app, ROUTERS, doors, service, root_path=root_path, tracing=tracing, max_body=max_body)
    if cors_origins:  # outside the boundary: a browser asks without a key whether it may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[*EXPOSED, *RATE_HEADERS],
        )
    return app


def create_admin_app(service: GenerationService, tenants: TenantManagement, doors: Doors, usage: UsageStore) -> FastAPI:
    """The admin API, an application of its own: no description, route or key of the other one's is mixed in."""
    app = _application("Livery admin API")
    app.state.admin = admin.AdminContext(tenants, service, usage)
    _mount(app, ADMIN_ROUTERS, doors, service, rest="operate")
    return app


def _application(title: str) -> FastAPI:
    # The framework's own pages load scripts from elsewhere; redirects would bypass the list of open paths.
    return FastAPI(
        title=title,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call their methods
        # Also takes the place of the framework's own description of a 422, which this server never answers.
        responses={status: {"model": errors.ErrorAnswer, "description": "Refused or failed"} for status in ERRORS},
    )


def _mount(
    app: FastAPI,
    routers: Routers,
    doors: Doors,
    service: GenerationService,
    *,
    rest: Purpose = "ask",
    root_path: str = "",
    tracing: TraceSink | None = None,
    max_body: int = MAX_BODY,
) -> None:
    """Give an application its routes, the answers for what goes wrong, and the boundary around them."""
    for router, _ in routers:
        app.include_router(router)
    errors.install(app, Routes([*app.routes, *(route for router, _ in routers for route in router.routes)]))
    app.add_middleware(
        Boundary,
        doors=doors,
        access=Access(routers, rest),
        metrics=service.metrics,
        admission=service.admission,
        root_path=root_path,
        tracing=tracing,
        max_body=max_body,
    )
