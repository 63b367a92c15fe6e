"""Where `livery keys` and `livery tenants` find the tenants: a server's admin API, or a data folder without a server.

Both answer a verb with the same JSON; livery.tenancy.management says what is in it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol
from urllib.parse import quote

import typer

from livery.adapter_views import Json
from livery.commands.asking import Asking, CommandFailed, given, http_client
from livery.commands.reach import Show, ask, tell, with_options
from livery.data_folder import DataFolder
from livery.settings import usual_data_folder
from livery.tenancy import TenantManagement, TenantStore
from livery.tenancy.management import Limited
from livery.tenancy.records import Role
from livery_adapters.registry import Registry

EXAMPLE = "http://127.0.0.1:8001"
API = "/admin/v1"


class Tenants(Protocol):
    """The verbs, as TenantManagement has them. Each raises CommandFailed, TenancyError or RegistryError."""

    async def tenants(self, after: str = "") -> Json: ...

    async def tenant(self, name: str) -> Json: ...

    async def create_tenant(self, name: str, *, weight: float = 1.0, limits: Limited | None = None) -> Json: ...

    async def update_tenant(
        self,
        name: str,
        *,
        weight: float | None = None,
        limits: Limited | None = None,
        disabled: bool | None = None,
    ) -> Json: ...

    async def delete_tenant(self, name: str) -> Json: ...

    async def keys(self, tenant: str | None = None, after: str = "") -> Json: ...

    async def create_key(
        self,
        tenant: str,
        *,
        role: Role,
        allow: Sequence[str],
        limits: Limited | None,
        label: str,
        expires: str | None,
    ) -> Json: ...

    async def revoke_key(self, key: str) -> Json: ...

    async def rotate_key(self, key: str, *, grace_s: float = 0.0) -> Json: ...


async def every_page(page: Callable[[str], Awaitable[Json]]) -> Json:
    """What all pages have together; `page` gives the one that begins after a name.

    A server from before there were pages says of none that it has a next one: it tells all at once.
    """
    found: list[Json] = []
    after: str | None = ""
    while after is not None:
        told = await page(after)
        found += told["data"]
        after = told.get("next_after")
    return {"data": found}


class HttpTenants(Asking):
    """Asks the admin API of a running server."""

    hint = (
        "is `livery serve --admin-port PORT` running there? --url or LIVERY_ADMIN_URL names another, --data DIR needs "
        "no server"
    )

    async def tenants(self, after: str = "") -> Json:
        return await self._ask("GET", f"{API}/tenants", {"data"}, params={"after": after})

    async def tenant(self, name: str) -> Json:
        return await self._ask("GET", _at("tenants", name), {"name", "limits"})

    async def create_tenant(self, name: str, *, weight: float = 1.0, limits: Limited | None = None) -> Json:
        body = {"name": name, "weight": weight, "limits": dict(limits or {})}
        return await self._ask("POST", f"{API}/tenants", {"name", "limits"}, json=body)

    async def update_tenant(
        self,
        name: str,
        *,
        weight: float | None = None,
        limits: Limited | None = None,
        disabled: bool | None = None,
    ) -> Json:
        body = given({"weight": weight, "disabled": disabled, "limits": dict(limits or {})})
        return await self._ask("PATCH", _at("tenants", name), {"name", "limits"}, json=body)

    async def delete_tenant(self, name: str) -> Json:
        return await self._ask("DELETE", _at("tenants", name), {"name", "deleted"})

    async def keys(self, tenant: str | None = None, after: str = "") -> Json:
        return await self._ask("GET", f"{API}/keys", {"data"}, params={"after": after, **given({"tenant": tenant})})

    async def create_key(
        self,
        tenant: str,
        *,
        role: Role,
        allow: Sequence[str],
        limits: Limited | None,
        label: str,
        expires: str | None,
    ) -> Json:
        body = {"tenant": tenant, "role": role, "allow": list(allow), "limits": dict(limits or {}), "label": label}
        return await self._ask("POST", f"{API}/keys", {"key", "id"}, json={**body, **given({"expires": expires})})

    async def revoke_key(self, key: str) -> Json:
        return await self._ask("DELETE", _at("keys", key), {"id", "revoked"})

    async def rotate_key(self, key: str, *, grace_s: float = 0.0) -> Json:
        return await self._ask("POST", f"{_at('keys', key)}/rotate", {"key", "id"}, json={"grace_s": grace_s})


@dataclass(frozen=True, slots=True)
class TenantsReach:
    """Where a command looks: at `url`, or else in `data` or at `registry`; and how it answers."""

    url: str | None
    key: str | None
    data: Path
    registry: str | None
    as_json: bool

    def run(self, verb: Callable[[Tenants], Awaitable[Json]], show: Show, *, creates: bool = False) -> None:
        """Ask for one verb and print the answer. `creates`: it may be the first in a folder. Raises CommandFailed."""
        if self.url is not None:
            answer = ask(_open_server(self.url, self.key), verb)
        else:
            answer = ask(_open_here(DataFolder(self.data.expanduser()), self.registry, creates=creates), verb)
        tell(answer, show, as_json=self.as_json)

    @property
    def place(self) -> str:
        """Where that is, for people."""
        return self.url or ("--registry" if self.registry else str(self.data))


OPTIONS = {
    "url": Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"A server's admin API, as in {EXAMPLE} or unix:PATH; else LIVERY_ADMIN_URL."),
    ],
    "key": Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar=["LIVERY_ADMIN_KEY", "LIVERY_API_KEY"], help="With --url: an admin key."),
    ],
    "data": Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A server's data folder: no server is asked. Else LIVERY_DATA, or that of `livery serve` "
            "without --data and --port.",
        ),
    ],
    "registry": Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="LIVERY_REGISTRY", help="postgresql:// URL, if the server has one."),
    ],
}


def reaches_tenants(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a TenantsReach, from one with the options that make it."""

    def reach(url: str | None, key: str | None, data: Path | None, registry: str | None, as_json: bool) -> TenantsReach:
        # What a flag says goes before any variable, that of another option as well.
        if url is not None and data is not None:
            raise typer.BadParameter("--url asks a server and --data a folder: give one of them")
        if data is None:
            url = url or os.environ.get("LIVERY_ADMIN_URL") or None
            data = Path(os.environ.get("LIVERY_DATA") or usual_data_folder())
        return TenantsReach(url, key, data, registry, as_json)

    return with_options(command, OPTIONS, reach)


@asynccontextmanager
async def _open_server(url: str, key: str | None) -> AsyncIterator[Tenants]:
    async with http_client(url, key, EXAMPLE) as client:
        yield HttpTenants(client, url)


@asynccontextmanager
async def _open_here(folder: DataFolder, registry: str | None, *, creates: bool) -> AsyncIterator[Tenants]:
    """Raises DataFolderUnusable, RegistryError."""
    if registry is None:
        await asyncio.to_thread(folder.check_here, "tenants", folder.tenants, creates=creates)
        if creates:
            folder.make()
    store = await asyncio.to_thread(TenantStore.open, folder.tenants_url(registry))
    try:
        yield TenantManagement(store, lambda: _names(folder, registry))
    finally:
        await asyncio.to_thread(store.close)


@contextmanager
def _names(folder: DataFolder, url: str | None) -> Iterator[Registry | None]:
    """The registry; a folder without one holds no adapters."""
    if url is None and not folder.database.exists():
        yield None
        return
    registry = Registry.open(url or folder.registry_url())
    try:
        yield registry
    finally:
        registry.close()


def _at(what: str, name: str) -> str:
    if name in ("", ".", ".."):  # these would be another route
        raise CommandFailed(f"there is nothing named {name!r} among the {what}; `livery {what} ls` shows what there is")
    return f"{API}/{what}/{quote(name, safe='')}"
