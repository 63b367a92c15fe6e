"""What was used, for whom, and when: of a key, of its tenant, or of all, as the caller may see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from livery.api.answers import answers
from livery.api.boundary import RequestRecord
from livery.api.context import ContextDep
from livery.api.responses import json_response
from livery.beside import REPORTING
from livery.tenancy import UsageStore
from livery.tenancy.reports import as_csv, asked, page_of
from livery.tenancy.usage import MOST_TOLD

router = APIRouter()

Word = Annotated[str | None, Query(max_length=1024)]
Moment = Annotated[str | None, Query(max_length=64)]


class UsageLine(BaseModel):
    """What one group used, with a field for each part of `by`. `cached_tokens` are prompt tokens found computed."""

    model_config = ConfigDict(extra="allow")

    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class UsageReport(BaseModel):
    """One page of what was used, by its groups; `next_after` is where the next one starts."""

    model_config = ConfigDict(populate_by_name=True)

    object: Literal["list"]
    by: list[str]
    from_: Annotated[str | None, Field(alias="from")]
    to: str | None
    data: list[UsageLine]
    has_more: bool
    next_after: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The parameters of a report."""

    by: Annotated[list[str] | None, Query(max_length=16)] = None
    start: Annotated[Moment, Query(alias="from")] = None
    end: Annotated[Moment, Query(alias="to")] = None
    tenant: Word = None
    key: Word = None
    adapter: Word = None
    limit: Annotated[int, Query(ge=1, le=MOST_TOLD)] = MOST_TOLD
    after: Annotated[str | None, Query(max_length=4096)] = None
    form: Annotated[Literal["json", "csv"] | None, Query(alias="format")] = None


@router.get("/v1/usage", responses=answers(UsageReport))
async def usage(request: Request, context: ContextDep, wanted: Annotated[Wanted, Depends()]) -> Response:
    """Tokens and requests, added up by day or by any of tenant, key, adapter, version, hour; whole hours in UTC.

    A second old at most. With `format=csv` or `Accept: text/csv` as CSV, and `next_after` in the header x-next-after.
    """
    return await report(request, context.usage, wanted)


async def report(request: Request, store: UsageStore, wanted: Wanted) -> Response:
    """One page of what the caller may see. Raises InvalidParameter, RegistryUnavailable, RegistryUnreadable."""
    record: RequestRecord = request.state.record
    question = asked(
        record.principal,
        by=wanted.by or (),
        start=wanted.start,
        end=wanted.end,
        tenant=wanted.tenant,
        key=wanted.key,
        adapter=wanted.adapter,
        limit=wanted.limit,
        after=wanted.after,
    )
    lines = await REPORTING.run(record.principal.tenant, partial(store.report, question))
    page = page_of(question, lines, record.principal)
    if wanted.form == "csv" or (wanted.form is None and "text/csv" in request.headers.get("accept", "")):
        more = {"x-next-after": page["next_after"]} if page["has_more"] else {}
        return Response(as_csv(page), media_type="text/csv", headers=more)
    return json_response(page)
