"""The tenants and their keys, in SQL: SQLite, or PostgreSQL beside the registry of adapters.

    store = TenantStore.open(data / "tenants.db")
    store.create_tenant("acme")
    key, secret = store.create_key("acme", role="owner")     # `secret` is nowhere but here
    store.rotate_key(key.id, grace_s=60)
    seen = store.snapshot(-1)                                # everything, for whoever keeps it in memory
    store.close()

Every method is one transaction: what it returned is on disk, what it raised left nothing. Methods block; any thread may
call them. Each may raise RegistryUnavailable or RegistryUnreadable, as the registry's do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from livery.tenancy import checks, rows
from livery.tenancy.clock import database_clock
from livery.tenancy.errors import InvalidTenancy, KeyOver, TenantExists, TenantInUse
from livery.tenancy.migrations import MIGRATIONS
from livery.tenancy.records import EVERYTHING, NO_LIMITS, Key, Role, Tenant, account_of
from livery.tenancy.rows import Snapshot
from livery.tenancy.schema import keys, state, tenants, usage
from livery.tenancy.secrets import new_key
from livery_adapters.names import OPERATOR_TENANT
from livery_adapters.registry.database import Database

_WRITERS = 0x6C6976746E74  # of PostgreSQL's advisory lock: nobody who writes here waits for the registry's writers

MAX_GRACE_S = 366 * 86400

Occupied = Callable[[str], str | None]
"""The name of something below a tenant's name, None where nothing is."""


class TenantStore:
    """The only writer of tenants and keys."""

    def __init__(self, database: Database) -> None:
        """Use `open`, which brings the schema up to date."""
        self.database = database

    @classmethod
    def open(cls, url: str | Path) -> TenantStore:
        """A SQLite file, made when it isn't there, or `postgresql://user@host/name`. An older schema is migrated.

        Raises RegistryTooNew, RegistryUnreadable, RegistryUnavailable, RegistryError.
        """
        database = Database(url, "tenants", _WRITERS)
        try:
            with database.write() as connection:
                MIGRATIONS.migrate(connection, database.where)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        self.database.close()

    def keyed(self) -> bool:
        """Whether a key was ever made here: then one is asked for, also when it was revoked since."""
        with self.database.read() as connection:
            return bool(connection.execute(select(state.c.keyed)).scalar_one())

    def now(self) -> float:
        """Unix time by the database's clock, in which keys are made and expire."""
        with self.database.read() as connection:
            return database_clock(connection)

    def has_admin(self) -> bool:
        """Whether somebody has an admin's key that is valid now."""
        now = self.now()
        return any(
            key.role == "admin" and key.revoked is None and (key.expires is None or key.expires > now)
            for key in self.keys(OPERATOR_TENANT)
        )

    def snapshot(self, seen: int) -> Snapshot | None:
        """Everything at one moment; None where nothing changed since the one with the number `seen`."""
        with self.database.read() as connection:
            now = connection.execute(select(state.c.changes, state.c.keyed)).one()
            if now.changes == seen:
                return None
            return Snapshot(
                now.changes,
                bool(now.keyed),
                rows.tenants_of(connection),
                rows.keys_of(connection),
            )

    # -- tenants -----------------------------------------------------------------------------------------

    def create_tenant(
        self,
        name: str,
        *,
        weight: float = 1.0,
        limits: Mapping[str, int | None] | None = None,
        occupied: Occupied,
    ) -> Tenant:
        """Raises InvalidTenancy, TenantExists, and TenantInUse where adapters lie below its name already."""
        checks.check_tenant_name(name)
        checks.check_weight(weight)
        limited = checks.changed_limits(NO_LIMITS, limits or {})
        with self.database.write() as connection:
            tenant = Tenant(name, weight, limited, database_clock(connection))
            if rows.find_tenant(connection, name) is not None:
                raise TenantExists(name)
            _add(connection, tenant, occupied)
            return tenant

    def tenants(self, after: str = "", limit: int | None = None) -> tuple[Tenant, ...]:
        """All of them by name; or at most `limit`, those that come after a name. Raises InvalidTenancy."""
        if after:
            checks.check_tenant_name(after)
        with self.database.read() as connection:
            return rows.tenants_of(connection, after, limit)

    def is_tenant(self, name: str) -> bool:
        """Whether there is one of this name now; KeyRing knows it without asking, half a second later."""
        with self.database.read() as connection:
            return rows.find_tenant(connection, name) is not None

    def tenant(self, name: str) -> Tenant:
        """Raises UnknownTenant."""
        with self.database.read() as connection:
            return rows.tenant(connection, name)

    def update_tenant(
        self,
        name: str,
        *,
        weight: float | None = None,
        limits: Mapping[str, int | None] | None = None,
        disabled: bool | None = None,
    ) -> Tenant:
        """Change what is given; of the limits those that are named. Raises UnknownTenant, InvalidTenancy."""
        if weight is not None:
            checks.check_weight(weight)
        if disabled and name == OPERATOR_TENANT:
            raise InvalidTenancy(f"{name} is the operator's own tenant and can't be disabled; revoke its keys instead")
        with self.database.write() as connection:
            before = rows.tenant(connection, name)
            after = msgspec.structs.replace(
                before,
                weight=before.weight if weight is None else weight,
                limits=checks.changed_limits(before.limits, limits or {}),
                disabled=before.disabled if disabled is None else disabled,
            )
            if after != before:
                connection.execute(update(tenants).where(tenants.c.name == name).values(rows.of_tenant(after)))
                _note(connection)
            return after

    def delete_tenant(self, name: str, *, occupied: Occupied) -> None:
        """Its keys go with it; what it used is kept as NAME~CREATED's, and isn't the next one's of that name.

        Raises UnknownTenant, InvalidTenancy, and TenantInUse.
        """
        if name == OPERATOR_TENANT:
            raise InvalidTenancy(f"{name} is the operator's own tenant and can't be deleted")
        with self.database.write() as connection:
            tenant = rows.tenant(connection, name)
            there = occupied(name)
            if there is not None:
                raise TenantInUse(f"tenant {name} still has adapters, {there} among them; delete those first")
            connection.execute(delete(tenants).where(tenants.c.name == name))
            gone = account_of(name, tenant.created)
            connection.execute(update(usage).where(usage.c.tenant == name).values(tenant=gone))
            _note(connection)

    # -- keys --------------------------------------------------------------------------------------------

    def create_key(
        self,
        tenant: str,
        *,
        role: Role = "user",
        allow: Sequence[str] = EVERYTHING,
        limits: Mapping[str, int | None] | None = None,
        label: str = "",
        expires: float | None = None,
        occupied: Occupied,
    ) -> tuple[Key, str, bool]:
        """The key as it is kept, the key itself, and whether its tenant was made for it.

        Raises InvalidTenancy, and TenantInUse as `create_tenant` does.
        """
        checks.check_tenant_name(tenant)
        checks.check_role(role, tenant)
        checks.check_allow(allow)
        checks.check_label(label)
        limited = checks.changed_limits(NO_LIMITS, limits or {})
        secret = new_key()
        may_ask = tuple(dict.fromkeys(allow))
        with self.database.write() as connection:
            now = database_clock(connection)
            checks.check_expiry(expires, now)
            key = Key(secret.id, secret.digest.hex(), tenant, role, may_ask, limited, label, now, expires)
            new = rows.find_tenant(connection, tenant) is None
            if new:
                _add(connection, Tenant(tenant, created=now), occupied)
            _keep(connection, key)
            return key, secret.text, new

    def keys(self, tenant: str | None = None, after: str = "", limit: int | None = None) -> tuple[Key, ...]:
        """All keys, or a tenant's, in the order in which they were made; or at most `limit`, those after one.

        Raises UnknownTenant, UnknownKey.
        """
        with self.database.read() as connection:
            if tenant is not None:
                rows.tenant(connection, tenant)
            return rows.keys_of(connection, tenant, rows.key(connection, after) if after else None, limit)

    def revoke_key(self, key: str) -> Key:
        """Raises UnknownKey. One that is revoked already stays so."""
        with self.database.write() as connection:
            before = rows.key(connection, key)
            if before.revoked is not None:
                return before
            return _change(connection, before, revoked=database_clock(connection))

    def rotate_key(self, key: str, grace_s: float = 0.0) -> tuple[Key, str]:
        """A new key with the rights of an old one, which ends in `grace_s` seconds, or at once.

        Raises UnknownKey, KeyOver, InvalidTenancy.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidTenancy(f"the grace is {grace_s} seconds; give 0 to {MAX_GRACE_S}, a year", "grace")
        secret = new_key()
        with self.database.write() as connection:
            old, now = rows.key(connection, key), database_clock(connection)
            if old.revoked is not None:
                raise KeyOver(old.id, "was revoked")
            if old.expires is not None and old.expires <= now:
                raise KeyOver(old.id, "has expired")
            new = msgspec.structs.replace(old, id=secret.id, digest=secret.digest.hex(), created=now)
            if grace_s:
                ends = now + grace_s
                _change(connection, old, expires=ends if old.expires is None else min(old.expires, ends))
            else:
                _change(connection, old, revoked=now)
            _keep(connection, new)
            return new, secret.text


def _add(connection: Connection, tenant: Tenant, occupied: Occupied) -> None:
    there = occupied(tenant.name)
    if there is not None:
        raise TenantInUse(
            f"a tenant {tenant.name} would own {there}, which isn't its; rename what lies below {tenant.name}/ or "
            "choose another name"
        )
    connection.execute(insert(tenants).values(rows.of_tenant(tenant)))
    _note(connection)


def _keep(connection: Connection, key: Key) -> None:
    connection.execute(insert(keys).values(rows.of_key(key)))
    connection.execute(update(state).values(keyed=True))
    _note(connection)


def _change(connection: Connection, before: Key, **changed: float) -> Key:
    after = msgspec.structs.replace(before, **changed)
    connection.execute(update(keys).where(keys.c.id == before.id).values(**changed))
    _note(connection)
    return after


def _note(connection: Connection) -> None:
    connection.execute(update(state).values(changes=state.c.changes + 1))
