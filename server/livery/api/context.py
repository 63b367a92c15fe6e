"""What routes get from the application they run in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from livery.api.boundary import RequestRecord
from livery.api.unknown_fields import UnknownFields
from livery.lease import Caller
from livery.managed import ManagedAdapters
from livery.management import AdapterManagement
from livery.overview import Overview
from livery.service import GenerationService
from livery.tenancy import UsageStore


@dataclass(frozen=True, slots=True)
class Context:
    """One application's service, the management of its adapters, what was used, how long a stream may stay silent, in
    seconds, what becomes of unknown fields, and how long a request may take, in seconds (0: any time).
    """

    service: GenerationService
    management: AdapterManagement
    usage: UsageStore
    keep_alive_s: float
    unknown_fields: UnknownFields
    overview: Overview
    request_timeout_s: float = 0.0


async def _context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


ContextDep = Annotated[Context, Depends(_context)]


def caller_of(request: Request, user: str | None = None) -> Caller:
    """Who asks; `user` is the field of that name."""
    record: RequestRecord = request.state.record
    return Caller(user, record.principal, record.claim, record.started)


async def _managed(request: Request, context: ContextDep) -> ManagedAdapters:
    return ManagedAdapters(context.management, caller_of(request).principal)


ManagedDep = Annotated[ManagedAdapters, Depends(_managed)]
