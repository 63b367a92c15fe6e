"""The verbs on tenants and keys as JSON, for the admin API and the command line alike.

What a key is appears once, in the answer to the verb that makes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from livery.beside import REPORTING
from livery.tenancy.checks import expiry
from livery.tenancy.records import EVERYTHING, OPERATOR, Key, Role, Tenant
from livery.tenancy.store import Occupied, TenantStore
from livery_adapters.registry import Registry, TenantNotEmpty

log = logging.getLogger("livery.keys")

MAX_PAGE = 1000
Json = dict[str, Any]
T = TypeVar("T")
Names = Callable[[], AbstractContextManager[Registry | None]]
"""Opens the registry of adapters, where there is one."""
Limited = Mapping[str, int | None]
"""Limits by name; None takes one away."""


class Ring(Protocol):
    """What a server knows of keys and tenants, in one process or in several."""

    async def refresh(self) -> None:
        """Know what the database knows now. Raises RegistryError."""
        ...


class TenantManagement:
    """Changes what is kept. Each verb raises TenancyError or RegistryError.

    `names` opens the registry of adapters. `ring` is that of the server of this process, which
    knows each change before the answer; others follow within half a second.
    """

    def __init__(self, store: TenantStore, names: Names, ring: Ring | None = None) -> None:
        self._store = store
        self._names = names
        self._ring = ring

    async def tenants(self, after: str = "", limit: int = MAX_PAGE) -> Json:
        """One page of the tenants by name; `next_after` is where the next one starts, None at the end."""

        def listed() -> Json:
            found = self._store.tenants(after, limit + 1)
            return _page([tenant_json(tenant) for tenant in found], limit, "name")

        return await REPORTING.run(OPERATOR.tenant, listed)

    async def tenant(self, name: str) -> Json:
        return tenant_json(await asyncio.to_thread(self._store.tenant, name))

    async def create_tenant(self, name: str, *, weight: float = 1.0, limits: Limited | None = None) -> Json:
        def create(occupied: Occupied) -> Tenant:
            return self._store.create_tenant(name, weight=weight, limits=limits, occupied=occupied)

        tenant = await asyncio.to_thread(self._alone, create)
        await self._told()
        return tenant_json(tenant)

    async def update_tenant(
        self,
        name: str,
        *,
        weight: float | None = None,
        limits: Limited | None = None,
        disabled: bool | None = None,
    ) -> Json:
        tenant = await asyncio.to_thread(
            self._store.update_tenant, name, weight=weight, limits=limits, disabled=disabled
        )
        await self._told()
        return tenant_json(tenant)

    async def delete_tenant(self, name: str) -> Json:
        await asyncio.to_thread(self._forget, name)
        await asyncio.to_thread(self._alone, lambda occupied: self._store.delete_tenant(name, occupied=occupied))
        await self._told()
        return {"name": name, "deleted": True}

    async def keys(self, tenant: str | None = None, after: str = "", limit: int = MAX_PAGE) -> Json:
        """One page of the keys in the order in which they were made, as `tenants` has them; `after` is a key's id."""

        def listed() -> Json:
            now = self._store.now()
            found = self._store.keys(tenant, after, limit + 1)
            return _page([key_json(key, now) for key in found], limit, "id")

        return await REPORTING.run(OPERATOR.tenant, listed)

    async def create_key(
        self,
        tenant: str,
        *,
        role: Role = "user",
        allow: Sequence[str] = EVERYTHING,
        limits: Limited | None = None,
        label: str = "",
        expires: str | None = None,
    ) -> Json:
        """`expires` is a span or a time, as livery.tenancy.checks.expiry reads it."""
        now = await asyncio.to_thread(self._store.now)
        ends = None if expires is None else expiry(expires, now)

        def create(occupied: Occupied) -> tuple[Key, str, bool]:
            return self._store.create_key(
                tenant, role=role, allow=allow, limits=limits, label=label, expires=ends, occupied=occupied
            )

        key, text, new = await asyncio.to_thread(self._alone, create)
        await self._told()
        log.info("key %s of tenant %s is made: role %s", key.id, key.tenant, key.role)
        return {"key": text, **key_json(key, now), "tenant_created": new}

    async def revoke_key(self, key: str) -> Json:
        revoked = await asyncio.to_thread(self._store.revoke_key, key)
        await self._told()
        log.info("key %s of tenant %s is revoked", revoked.id, revoked.tenant)
        return key_json(revoked, revoked.revoked or 0.0)

    async def rotate_key(self, key: str, *, grace_s: float = 0.0) -> Json:
        """The new key; the old one ends in `grace_s` seconds."""
        new, text = await asyncio.to_thread(self._store.rotate_key, key, grace_s)
        await self._told()
        log.info("key %s of tenant %s takes the place of %s in %g s", new.id, new.tenant, key, grace_s)
        return {"key": text, **key_json(new, new.created), "replaces": key, "grace_s": grace_s}

    def _alone(self, change: Callable[[Occupied], T]) -> T:
        """Change which tenants there are, while nobody puts a name below theirs: the two are in different databases,
        and whoever settles a name looks here, after this or before it."""
        with self._names() as registry:
            if registry is None:
                return change(lambda _: None)
            with registry.alone():
                return change(partial(_below, registry))

    def _forget(self, tenant: str) -> None:
        """What others share with a tenant that has nothing itself must not be the next one's of that name."""
        self._store.tenant(tenant)
        with self._names() as registry:
            if registry is not None and _below(registry, tenant) is None:
                registry.forget_tenant(tenant)

    async def _told(self) -> None:
        """Have this server know at once."""
        if self._ring is not None:
            await self._ring.refresh()


def _below(registry: Registry, tenant: str) -> str | None:
    """An adapter or alias below a tenant's name."""
    try:
        registry.check_empty(tenant)
    except TenantNotEmpty as error:
        return error.examples[0]
    return None


@contextmanager
def no_names() -> Iterator[Registry | None]:
    """There is no registry, so that no tenant has anything in it."""
    yield None


def _page(found: list[Json], limit: int, name: str) -> Json:
    """What was found of a page and one more; `name` is the field by which the next page is asked for."""
    more = len(found) > limit
    return {"data": found[:limit], "next_after": found[limit - 1][name] if more else None, "has_more": more}


def tenant_json(tenant: Tenant) -> Json:
    return {**msgspec.structs.asdict(tenant), "limits": msgspec.to_builtins(tenant.limits)}


def key_json(key: Key, now: float) -> Json:
    """Everything but the digest, which is nobody's business, and how the key stands."""
    fields = msgspec.structs.asdict(key)
    del fields["digest"]
    over = key.expires is not None and key.expires <= now
    state = "revoked" if key.revoked is not None else "expired" if over else "valid"
    return {**fields, "allow": list(key.allow), "limits": msgspec.to_builtins(key.limits), "state": state}
