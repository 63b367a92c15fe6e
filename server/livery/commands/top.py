"""`livery top`: a running server in a terminal, looked at again and again."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from livery.adapter_views import Json
from livery.commands.asking import Asking, CommandFailed, ServerUnusable, given, http_client
from livery.commands.backends import DEFAULT_URL
from livery.commands.top_view import frame

EXAMPLE = "livery top --url http://127.0.0.1:8000"
AROUND = 12  # lines of a frame that aren't adapters
ROWS = 50  # adapters where there is no screen that they have to fit on


class Looking(Asking):
    """Asks a running server how it is."""

    hint = "is `livery serve` running there? --url or LIVERY_URL names another"

    async def status(self, rows: int, search: str) -> Json:
        params = {"limit": rows, "sort": "tokens", "order": "desc", "search": search or None}
        return await self._ask("GET", "/v1/status", {"engine", "load", "adapters", "caller"}, params=given(params))

    def _refused(self, status: int, message: str, code: object) -> Exception:
        """Nothing is changed here that could be refused: whatever it is, the server can't be looked at."""
        return self._unusable(message, code)


def top(
    url: Annotated[
        str | None, typer.Option(metavar="URL", help=f"Where the server is; else LIVERY_URL or {DEFAULT_URL}.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="LIVERY_API_KEY", help="The server's API key.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="How often to look.")] = 2.0,
    search: Annotated[str, typer.Option(metavar="TEXT", help="Only adapters whose name holds this.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Watch a running server: adapters by traffic, where they are, what waits, how memory is used."""
    console = Console()
    if not once and not console.is_terminal:
        raise CommandFailed("livery top redraws a terminal, and this is none: print one frame with --once")
    where = url or os.environ.get("LIVERY_URL") or DEFAULT_URL
    try:
        asyncio.run(_look(console, where, key, interval, search, once=once))
    except KeyboardInterrupt:  # how one leaves
        return


async def _look(console: Console, url: str, key: str | None, interval: float, search: str, *, once: bool) -> None:
    """Raises CommandFailed for a server that can't be asked at all; one that goes away later is waited for."""
    async with http_client(url, key, EXAMPLE) as client:
        server = Looking(client, url)
        found = await server.status(ROWS if once else _rows(console), search)
        if once:
            console.print(frame(found, None))
            return
        with Live(frame(found, None), console=console, screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval)
                trouble = None
                before = found
                try:
                    found = await server.status(_rows(console), search)
                except ServerUnusable as unusable:
                    trouble = str(unusable)
                live.update(frame(found, before, trouble), refresh=True)


def _rows(console: Console) -> int:
    return max(1, min(1000, console.height - AROUND))
