"""`livery usage`: what was used, from a running server (--url) or from a data folder (--data)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery.adapter_views import Json
from livery.commands.backends import open_server
from livery.commands.offline import Place
from livery.commands.reach import Reach, ask, reaches
from livery.data_folder import DataFolder
from livery.tenancy import OPERATOR, TenantStore
from livery.tenancy.reports import COUNTED, as_csv, asked, page_of
from livery.tenancy.usage import MOST_TOLD, UsageStore

_FILTERS = ("from", "to", "tenant", "key", "adapter", "after")
_OPTIONS = {"key": "key-id"}  # where a filter's name is another option's


class Reports(Protocol):
    """Whoever can say what was used."""

    async def usage(self, words: Json) -> Json:
        """One page; the words are the parameters of GET /v1/usage."""
        ...


class LocalReports:
    """Reads a data folder's own database, as its operator."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    async def usage(self, words: Json) -> Json:
        renamed = {{"from": "start", "to": "end"}.get(name, name): value for name, value in words.items()}
        question = asked(OPERATOR, **renamed)
        return page_of(question, await asyncio.to_thread(self._store.report, question), OPERATOR)


@reaches
def usage(
    reach: Reach,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help="Add up by tenant, key, adapter, version, hour, day; repeatable, or commas."),
    ] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="As in 2026-11-01, in UTC.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Up to then, which isn't included.")] = None,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="Only this tenant's.")] = None,
    key_id: Annotated[str | None, typer.Option(metavar="ID", help="Only what this key used.")] = None,
    adapter: Annotated[str | None, typer.Option(metavar="NAME", help="Only this adapter's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_TOLD, help="Most lines of a page.")] = MOST_TOLD,
    after: Annotated[str | None, typer.Option(metavar="NEXT", help="The page after the one that named this.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print all pages as CSV.")] = False,
) -> None:
    """Show requests and tokens, added up by day, tenant, key or adapter version."""
    given = {
        "by": by or ["day"],
        "from": start,
        "to": end,
        "tenant": tenant,
        "key": key_id,
        "adapter": adapter,
        "limit": limit,
        "after": after,
    }
    words = {name: value for name, value in given.items() if value is not None}
    if csv and reach.as_json:
        raise typer.BadParameter("--csv and --json: give one of them")
    if csv:
        page = ask(_reports(reach), lambda reports: _print_csv(reports, words))
    else:
        page = ask(_reports(reach), lambda reports: reports.usage(words))
        reach.print(page, _show)
    if not page["data"]:
        typer.echo(_nothing(words), err=True)


def _reports(reach: Reach) -> AbstractAsyncContextManager[Reports]:
    return open_server(reach.url, reach.key) if reach.data is None else _open_local(reach.place())


@asynccontextmanager
async def _open_local(place: Place) -> AsyncIterator[LocalReports]:
    """Raises DataFolderUnusable, RegistryError."""
    folder = DataFolder(place.data)
    if place.registry is None:
        await asyncio.to_thread(folder.check_here, "usage", folder.tenants)
    store = await asyncio.to_thread(TenantStore.open, folder.tenants_url(place.registry))
    try:
        yield LocalReports(UsageStore(store.database))
    finally:
        await asyncio.to_thread(store.close)


async def _print_csv(reports: Reports, words: Json) -> Json:
    """All pages, one after the other; the first of them."""
    page = first = await reports.usage(words)
    typer.echo(as_csv(page), nl=False)
    while page["has_more"]:
        page = await reports.usage({**words, "after": page["next_after"]})
        typer.echo(as_csv(page, header=False), nl=False)
    return first


def _nothing(words: Json) -> str:
    """What there is to say beside a report without a line."""
    filters = [f"--{_OPTIONS.get(name, name)} {value}" for name, value in words.items() if name in _FILTERS]
    if not filters:
        return "nothing was used yet; what is computed shows up here within a second or two"
    return f"nothing was used with {' '.join(filters)}; without, --by tenant,key,adapter,day shows what was"


def _show(page: Json) -> None:
    table = Table(box=None, header_style="bold")
    for name in page["by"]:
        table.add_column(name)
    for name in COUNTED:
        table.add_column(name.replace("_", " "), justify="right")
    for line in page["data"]:
        counts = [f"{line[name]:,}" for name in COUNTED]
        table.add_row(*(escape(line[name][:12] if name == "version" else line[name]) for name in page["by"]), *counts)
    console = Console(soft_wrap=True)
    console.print(
        f"by {' and '.join(page['by'])}, times in UTC (--by: tenant, key, adapter, version, hour, day)", highlight=False
    )
    console.print(table)
    if page["next_after"] is not None:
        console.print(f"more: the same with --after {page['next_after']}", highlight=False)
