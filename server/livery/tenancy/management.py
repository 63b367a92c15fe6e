"""The verbs on tenants, keys and shares as JSON, for the admin API and the command line alike.

What a key is appears once, in the answer to the verb that makes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from livery.tenancy.checks import expiry
from livery.tenancy.keys import KeyRing
from livery.tenancy.records import EVERYTHING, Key, Role, Share, Tenant
from livery.tenancy.store import Occupied, TenantStore
from livery_adapters.registry import Registry

log = logging.getLogger("livery.keys")

Json = dict[str, Any]
Limited = Mapping[str, int | None]
"""Limits by name; None takes one away."""


class TenantManagement:
    """Changes what is kept. Each verb raises TenancyError or RegistryError.

    `occupied` names an adapter or alias below a tenant's name. `ring` is that of a server in this process, which knows
    each change before the answer; others follow within half a second.
    """

    def __init__(self, store: TenantStore, occupied: Occupied, ring: KeyRing | None = None) -> None:
        self._store = store
        self._occupied = occupied
        self._ring = ring

    async def tenants(self) -> Json:
        found = await asyncio.to_thread(self._store.tenants)
        return {"data": [tenant_json(tenant) for tenant in found]}

    async def tenant(self, name: str) -> Json:
        return tenant_json(await asyncio.to_thread(self._store.tenant, name))

    async def create_tenant(self, name: str, *, weight: float = 1.0, limits: Limited | None = None) -> Json:
        tenant = await asyncio.to_thread(
            self._store.create_tenant, name, weight=weight, limits=limits, occupied=self._occupied
        )
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
        await asyncio.to_thread(self._store.delete_tenant, name, occupied=self._occupied)
        await self._told()
        return {"name": name, "deleted": True}

    async def keys(self, tenant: str | None = None) -> Json:
        def listed() -> Json:  # there may be many thousands
            now = time.time()
            return {"data": [key_json(key, now) for key in self._store.keys(tenant)]}

        return await asyncio.to_thread(listed)

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
        now = time.time()
        ends = None if expires is None else expiry(expires, now)
        key, text, new = await asyncio.to_thread(
            self._store.create_key,
            tenant,
            role=role,
            allow=allow,
            limits=limits,
            label=label,
            expires=ends,
            occupied=self._occupied,
        )
        await self._told()
        log.info("key %s of tenant %s is made: role %s", key.id, key.tenant, key.role)
        return {"key": text, **key_json(key, now), "tenant_created": new}

    async def revoke_key(self, key: str) -> Json:
        revoked = await asyncio.to_thread(self._store.revoke_key, key)
        await self._told()
        log.info("key %s of tenant %s is revoked", revoked.id, revoked.tenant)
        return key_json(revoked, time.time())

    async def rotate_key(self, key: str, *, grace_s: float = 0.0) -> Json:
        """The new key; the old one ends in `grace_s` seconds."""
        new, text = await asyncio.to_thread(self._store.rotate_key, key, grace_s)
        await self._told()
        log.info("key %s of tenant %s takes the place of %s in %g s", new.id, new.tenant, key, grace_s)
        return {"key": text, **key_json(new, time.time()), "replaces": key, "grace_s": grace_s}

    async def shares(self, *, owner: str | None = None, grantee: str | None = None) -> Json:
        found = await asyncio.to_thread(self._store.shares, owner=owner, grantee=grantee)
        return {"data": [share_json(share) for share in found]}

    async def share(self, owner: str, name: str, grantee: str) -> Json:
        """`name` is the adapter's below OWNER/, with or without that."""
        share = await asyncio.to_thread(self._store.share, owner, _own(owner, name), grantee)
        await self._told()
        return share_json(share)

    async def unshare(self, owner: str, name: str, grantee: str) -> Json:
        await asyncio.to_thread(self._store.unshare, owner, _own(owner, name), grantee)
        await self._told()
        return {"owner": owner, "name": _own(owner, name), "grantee": grantee, "deleted": True}

    async def _told(self) -> None:
        """Have this process know at once."""
        if self._ring is not None:
            await self._ring.refresh()


def occupied_in(registry: Registry) -> Occupied:
    """Which of a registry's names lies below a tenant's."""

    def occupied(tenant: str) -> str | None:
        below = f"{tenant}/"
        page = registry.page(after=below, limit=1)
        names = [record.name for record in page.records] + [alias.name for alias in registry.aliases()]
        return next((name for name in names if name.startswith(below)), None)

    return occupied


def tenant_json(tenant: Tenant) -> Json:
    return {**msgspec.structs.asdict(tenant), "limits": msgspec.to_builtins(tenant.limits)}


def key_json(key: Key, now: float) -> Json:
    """Everything but the digest, which is nobody's business, and how the key stands."""
    fields = msgspec.structs.asdict(key)
    del fields["digest"]
    over = key.expires is not None and key.expires <= now
    state = "revoked" if key.revoked is not None else "expired" if over else "valid"
    return {**fields, "allow": list(key.allow), "limits": msgspec.to_builtins(key.limits), "state": state}


def share_json(share: Share) -> Json:
    return msgspec.structs.asdict(share)


def _own(owner: str, name: str) -> str:
    return name.removeprefix(f"{owner}/")
