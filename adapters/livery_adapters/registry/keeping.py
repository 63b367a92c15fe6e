"""What each tenant keeps, how much it may keep, and whom it shares with; each within a transaction of the caller."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Table, and_, delete, func, insert, not_, select

from livery_adapters.names import OPERATOR_TENANT
from livery_adapters.registry import changes, reading
from livery_adapters.registry.errors import InvalidShare, QuotaExceeded, TenantNotEmpty
from livery_adapters.registry.records import NO_QUOTA, Quota, Usage, reader_of
from livery_adapters.registry.rows import printable
from livery_adapters.registry.schema import adapters, aliases, shares, versions

MAX_GRANTEES = 1000
_EXAMPLES = 3


def usage(connection: Connection, owner: str) -> Usage:
    """See Registry.usage."""
    kept = adapters.join(versions, versions.c.name == adapters.c.name)
    own = adapters.c.owner == printable(owner)
    counts = select(func.count(versions.c.name.distinct()), func.count()).select_from(kept).where(own)
    names, numbers = connection.execute(counts).one()
    files = select(func.max(versions.c.nbytes).label("nbytes")).select_from(kept).where(own)
    each = files.group_by(versions.c.weights).subquery()
    nbytes = connection.execute(select(func.coalesce(func.sum(each.c.nbytes), 0))).scalar_one()
    others = connection.execute(select(func.count()).where(aliases.c.owner == printable(owner))).scalar_one()
    return Usage(adapters=names, aliases=others, versions=numbers, nbytes=int(nbytes))


@contextmanager
def within(connection: Connection, owner: str, quota: Quota) -> Iterator[None]:
    """Around a change by a tenant. Raises QuotaExceeded where it adds to what is over the quota then."""
    if quota == NO_QUOTA:
        yield
        return
    before = usage(connection, owner)
    yield
    after = usage(connection, owner)
    for name, limit, had, has in (
        ("adapters", quota.adapters, before.adapters, after.adapters),
        ("aliases", quota.adapters, before.aliases, after.aliases),
        ("versions", quota.versions, before.versions, after.versions),
        ("adapter_bytes", quota.nbytes, before.nbytes, after.nbytes),
    ):
        if limit is not None and had < has > limit:
            raise QuotaExceeded(name, limit, has)


def check_room(connection: Connection, name: str, owner: str, quota: Quota) -> None:
    """Whether there is room for a first version of a name that has none; of others that shows when they have come."""
    if quota.adapters is None:
        return
    if connection.execute(select(versions.c.name).where(versions.c.name == name).limit(1)).first() is not None:
        return
    kept = usage(connection, owner).adapters
    if kept >= quota.adapters:
        raise QuotaExceeded("adapters", quota.adapters, kept + 1)


# -- shares --------------------------------------------------------------------------------------------


def share(connection: Connection, name: str, owner: str | None, grantee: str) -> tuple[str, ...]:
    """See Registry.share."""
    grantee = printable(grantee)
    owner = reading.get(connection, name, reader=reader_of(owner)).owner
    if owner == OPERATOR_TENANT:
        raise InvalidShare(name, "it is the operator's, which every tenant may use anyway")
    if grantee in (owner, OPERATOR_TENANT):
        raise InvalidShare(name, f"tenant {grantee!r} may use it anyway; name another one")
    before = grantees(connection, name)
    if grantee in before:
        return before
    if len(before) >= MAX_GRANTEES:
        raise InvalidShare(name, f"it is shared with {len(before)} tenants, the most there may be; unshare it with one")
    connection.execute(insert(shares).values(name=name, grantee=grantee, since=time.time()))
    changes.note(connection, name)
    return grantees(connection, name)


def unshare(connection: Connection, name: str, owner: str | None, grantee: str) -> tuple[str, ...]:
    """See Registry.unshare."""
    reading.get(connection, name, reader=reader_of(owner))
    match = (shares.c.name == name) & (shares.c.grantee == printable(grantee))
    if connection.execute(delete(shares).where(match)).rowcount:
        changes.note(connection, name)
    return grantees(connection, name)


def grantees(connection: Connection, name: str) -> tuple[str, ...]:
    query = select(shares.c.grantee).where(shares.c.name == name).order_by(shares.c.grantee)
    return tuple(connection.execute(query).scalars())


# -- tenants -------------------------------------------------------------------------------------------


def check_empty(connection: Connection, tenant: str) -> None:
    """See Registry.check_empty."""
    found = [name for table in (adapters, aliases) for name in _below(connection, table, tenant)]
    if found:
        raise TenantNotEmpty(tenant, tuple(found[:_EXAMPLES]))


def forget(connection: Connection, tenant: str) -> None:
    """See Registry.forget_tenant."""
    check_empty(connection, tenant)
    connection.execute(delete(adapters).where(adapters.c.owner == printable(tenant)))
    granted = shares.c.grantee == printable(tenant)
    names = list(connection.execute(select(shares.c.name).where(granted)).scalars())
    connection.execute(delete(shares).where(granted))
    changes.note(connection, *names)


def _below(connection: Connection, table: Table, tenant: str) -> list[str]:
    """A few names that begin with the tenant's, of what isn't retired."""
    below = and_(table.c.name > f"{printable(tenant)}/", table.c.name < f"{printable(tenant)}0")  # 0 follows /
    kept = [not_(reading.RETIRED)] if table is adapters else []
    query = select(table.c.name).where(below, *kept).order_by(table.c.name).limit(_EXAMPLES)
    return list(connection.execute(query).scalars())
