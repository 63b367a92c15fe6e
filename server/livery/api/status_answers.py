"""What GET /v1/status answers, for the API's description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class AdapterRows(BaseModel):
    """A page of adapters, of those found of all that the caller may see."""

    data: list[dict[str, Any]]
    total: int
    found: int
    offset: int
    limit: int


class ServerStatus(BaseModel):
    """How everything is at this moment: figures of all to an admin, to others (`caller.sees` "tenant") their tenant's.

    `memory` is null while the engine doesn't answer, and to who isn't an admin.
    """

    object: Literal["status"]
    server: dict[str, Any]
    base: dict[str, Any]
    engine: dict[str, Any]
    load: dict[str, Any]
    throughput: dict[str, Any]
    memory: dict[str, Any] | None
    adapters: AdapterRows
    requests: Annotated[list[dict[str, Any]], Field(description="The last ones, without what they said")]
    caller: dict[str, Any]
