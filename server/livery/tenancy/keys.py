"""Keys in memory: whose a key is, without asking a database.

ring = KeyRing(store)
await ring.start()            # reads everything, and again within half a second of any change
ring.find(b"lv-...")          # a Principal, or None
await ring.refresh()          # after a change made here: it holds from now on
await ring.stop()
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from msgspec import MsgspecError
from sqlalchemy.exc import SQLAlchemyError

from livery.tenancy.records import Principal, Tenant
from livery.tenancy.rows import Snapshot
from livery.tenancy.secrets import MAX_KEY, digest
from livery.tenancy.store import TenantStore
from livery.vitals import Vitals
from livery_adapters.registry import RegistryError

log = logging.getLogger("livery.keys")

POLL_S = 0.5  # how soon a change made by another process is seen
FOLLOWER = "key-follower"


@dataclass(frozen=True, slots=True)
class _Held:
    principal: Principal
    expires: float  # a Unix time, by the database's clock


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read at one moment, ready to be asked. `keys` are by digest: nothing is compared but digests."""

    number: int
    keyed: bool
    keys: Mapping[bytes, _Held]
    tenants: Mapping[str, Tenant]


_NOTHING = _Known(-1, False, {}, {})


class KeyRing:
    """Follows a store. `find` and what reads belong to the event loop; they never wait."""

    def __init__(self, store: TenantStore, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts the seconds since the database said what time it is; by its clock keys expire."""
        self._store = store
        self._clock = clock
        self._ahead = 0.0  # of the database's time, before this process's count
        self._known = _NOTHING
        self._reading = asyncio.Lock()
        # Of its own: a revoked key holds no longer because others ask for much.
        self._thread = ThreadPoolExecutor(1, "livery-keys")
        self._vitals = Vitals()
        self._gone: Callable[[Collection[str]], None] = lambda _: None

    @property
    def keyed(self) -> bool:
        """Whether a key is asked for: one was made at some time. What was once closed never opens by itself."""
        return self._known.keyed

    def find(self, key: bytes) -> Principal | None:
        """Whose a key is; None for one that is unknown, revoked, expired or of a disabled tenant, all alike."""
        if len(key) > MAX_KEY:
            return None
        held = self._known.keys.get(digest(key))
        return held.principal if held is not None and self._clock() + self._ahead < held.expires else None

    def tenant(self, name: str) -> Tenant | None:
        return self._known.tenants.get(name)

    def is_tenant(self, name: str) -> bool:
        """Whether there is a tenant of this name, whose the names are that begin with NAME/."""
        return name in self._known.tenants

    def when_gone(self, told: Callable[[Collection[str]], None]) -> None:
        """`told` hears of tenants, by name, that aren't there any more, also where there is another one by now."""
        self._gone = told

    async def start(self, vitals: Vitals | None = None) -> None:
        """Read everything, then follow. Raises RegistryError when nothing can be read."""
        await self.refresh()
        self._vitals = vitals or self._vitals
        self._vitals.run(FOLLOWER, self._follow())

    async def refresh(self) -> None:
        """Know what the database knows now. Raises RegistryError."""
        async with self._reading:
            loop = asyncio.get_running_loop()
            seen, self._ahead = await loop.run_in_executor(self._thread, self._read, self._known.number)
            if seen is not None:
                before, self._known = self._known, seen
                gone = [one for one in before.tenants.values() if not _same(one, seen.tenants.get(one.name))]
                self._gone([one.name for one in gone])

    async def stop(self) -> None:
        await self._vitals.stop(FOLLOWER)

    def _read(self, number: int) -> tuple[_Known | None, float]:
        """In a thread: what changed since, made ready there; and by how much the database's time is ahead."""
        snapshot = self._store.snapshot(number)
        known = _known(snapshot) if snapshot is not None else None
        return known, self._store.now() - self._clock()

    async def _follow(self) -> None:
        working = True
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.refresh()
                working = True
            except (RegistryError, SQLAlchemyError, MsgspecError, OSError) as error:
                if working:  # once, not twice a second
                    log.error("the keys can't be read (%s); those known go on being taken", error)
                working = False


def _same(tenant: Tenant, now: Tenant | None) -> bool:
    return now is not None and now.created == tenant.created


def _known(snapshot: Snapshot) -> _Known:
    tenants = {tenant.name: tenant for tenant in snapshot.tenants}
    held = {
        bytes.fromhex(key.digest): _Held(
            Principal(
                tenant=key.tenant,
                role=key.role,
                key=key.id,
                allow=key.allow,
                weight=tenants[key.tenant].weight,
                limits=key.limits,
                tenant_limits=tenants[key.tenant].limits,
                anywhere=key.role != "user",
                created=tenants[key.tenant].created,
            ),
            math.inf if key.expires is None else key.expires,
        )
        for key in snapshot.keys
        if key.revoked is None and not tenants[key.tenant].disabled
    }
    return _Known(snapshot.number, snapshot.keyed, held, tenants)
