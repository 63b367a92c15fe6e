"""Rows to records and back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, literal, select, tuple_

from livery.tenancy.errors import UnknownKey, UnknownTenant
from livery.tenancy.records import Key, Limits, Tenant
from livery.tenancy.schema import keys, tenants

# What a database may be asked for: anything else is in none of its rows, and PostgreSQL takes no NUL in a text.
_PLAIN = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there was at one moment. `number` grows with each change; `keyed`: a key was made at some time."""

    number: int
    keyed: bool
    tenants: tuple[Tenant, ...]
    keys: tuple[Key, ...]


def find_tenant(connection: Connection, name: str) -> Tenant | None:
    if not _PLAIN.fullmatch(name):
        return None
    row = connection.execute(select(tenants).where(tenants.c.name == name)).first()
    return _tenant(row) if row is not None else None


def tenant(connection: Connection, name: str) -> Tenant:
    """Raises UnknownTenant."""
    found = find_tenant(connection, name)
    if found is None:
        raise UnknownTenant(name)
    return found


def tenants_of(connection: Connection, after: str = "", limit: int | None = None) -> tuple[Tenant, ...]:
    query = select(tenants).where(tenants.c.name > after).order_by(tenants.c.name).limit(limit)
    return tuple(_tenant(row) for row in connection.execute(query))


def key(connection: Connection, id_: str) -> Key:
    """Raises UnknownKey."""
    row = connection.execute(select(keys).where(keys.c.id == id_)).first() if _PLAIN.fullmatch(id_) else None
    if row is None:
        raise UnknownKey(id_)
    return _key(row)


def keys_of(
    connection: Connection, of_tenant: str | None = None, after: Key | None = None, limit: int | None = None
) -> tuple[Key, ...]:
    query = select(keys).order_by(keys.c.created, keys.c.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(keys.c.created, keys.c.id) > tuple_(literal(after.created), literal(after.id)))
    if of_tenant is not None:
        query = query.where(keys.c.tenant == of_tenant)
    return tuple(_key(row) for row in connection.execute(query))


def of_tenant(value: Tenant) -> dict[str, Any]:
    return {**msgspec.structs.asdict(value), "limits": _json(value.limits)}


def of_key(value: Key) -> dict[str, Any]:
    return {**msgspec.structs.asdict(value), "allow": json.dumps(value.allow), "limits": _json(value.limits)}


def _json(limits: Limits) -> str:
    return msgspec.json.encode(limits).decode()


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(**{**row._mapping, "limits": msgspec.json.decode(row.limits, type=Limits)})


def _key(row: Row[Any]) -> Key:
    fields = {**row._mapping, "limits": msgspec.json.decode(row.limits, type=Limits)}
    return Key(**{**fields, "allow": tuple(json.loads(row.allow))})
