"""The admin API: tenants and keys. It has a port or socket of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query, Request, Response

from livery.api.admin_bodies import (
    CreateKeyBody,
    CreateTenantBody,
    DeletedTenant,
    KeyList,
    KeyView,
    NewKey,
    RotatedKey,
    RotateKeyBody,
    TenantList,
    TenantView,
    UpdateTenantBody,
)
from livery.api.answers import answers, plain
from livery.api.reading import BodyRoute
from livery.api.responses import json_response
from livery.api.status import series
from livery.api.usage import UsageReport, Wanted, report
from livery.service import GenerationService
from livery.tenancy import TenantManagement, UsageStore
from livery.tenancy.management import MAX_PAGE

router = APIRouter(prefix="/admin/v1", route_class=BodyRoute)
scraping = APIRouter()


@dataclass(frozen=True, slots=True)
class AdminContext:
    """What the routes act on: the tenants, the service whose series /metrics shows, and what was used."""

    tenants: TenantManagement
    service: GenerationService
    usage: UsageStore


async def _context(request: Request) -> AdminContext:
    return cast(AdminContext, request.app.state.admin)


AdminDep = Annotated[AdminContext, Depends(_context)]
Filter = Annotated[str | None, Query(max_length=256)]
After = Annotated[str, Query(max_length=256)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


@router.get("/tenants", responses=answers(TenantList))
async def list_tenants(admin: AdminDep, after: After = "", limit: Limit = MAX_PAGE) -> Response:
    return json_response(await admin.tenants.tenants(after, limit))


@router.post("/tenants", responses=answers(TenantView))
async def create_tenant(body: CreateTenantBody, admin: AdminDep) -> Response:
    made = await admin.tenants.create_tenant(body.name, weight=body.weight, limits=body.limits)
    return json_response(made)


@router.get("/tenants/{name}", responses=answers(TenantView))
async def show_tenant(name: str, admin: AdminDep) -> Response:
    return json_response(await admin.tenants.tenant(name))


@router.patch("/tenants/{name}", responses=answers(TenantView))
async def update_tenant(name: str, body: UpdateTenantBody, admin: AdminDep) -> Response:
    changed = await admin.tenants.update_tenant(name, weight=body.weight, limits=body.limits, disabled=body.disabled)
    return json_response(changed)


@router.delete("/tenants/{name}", responses=answers(DeletedTenant))
async def delete_tenant(name: str, admin: AdminDep) -> Response:
    """Refused (409) while adapters lie below its name."""
    return json_response(await admin.tenants.delete_tenant(name))


@router.get("/keys", responses=answers(KeyList))
async def list_keys(admin: AdminDep, tenant: Filter = None, after: After = "", limit: Limit = MAX_PAGE) -> Response:
    return json_response(await admin.tenants.keys(tenant, after, limit))


@router.post("/keys", responses=answers(NewKey))
async def create_key(body: CreateKeyBody, admin: AdminDep) -> Response:
    made = await admin.tenants.create_key(
        body.tenant,
        role=body.role,
        allow=body.allow,
        limits=body.limits,
        label=body.label,
        expires=body.expires,
    )
    return json_response(made)


@router.delete("/keys/{key}", responses=answers(KeyView))
async def revoke_key(key: str, admin: AdminDep) -> Response:
    """The key opens nothing from now on; what it was stays on record."""
    return json_response(await admin.tenants.revoke_key(key))


@router.post("/keys/{key}/rotate", responses=answers(RotatedKey))
async def rotate_key(key: str, admin: AdminDep, body: RotateKeyBody | None = None) -> Response:
    """Another key with the same rights."""
    made = await admin.tenants.rotate_key(key, grace_s=body.grace_s if body else 0.0)
    return json_response(made)


@router.get("/usage", responses=answers(UsageReport))
async def usage(request: Request, admin: AdminDep, wanted: Annotated[Wanted, Depends()]) -> Response:
    """As GET /v1/usage."""
    return await report(request, admin.usage, wanted)


@scraping.get(
    "/metrics",
    response_class=Response,
    responses=plain("Series for Prometheus.", "livery_adapters_registered 5.0"),
)
async def metrics(admin: AdminDep) -> Response:
    return await series(admin.service)
