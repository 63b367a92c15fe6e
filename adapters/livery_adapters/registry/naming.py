"""Aliases, each change within a writing transaction of the caller."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import get_args

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from livery_adapters.names import OPERATOR_TENANT
from livery_adapters.registry import changes, reading
from livery_adapters.registry.errors import InvalidAlias, NameTaken, UnknownAlias
from livery_adapters.registry.records import Alias, AliasTarget, Reader, Sticky, reader_of
from livery_adapters.registry.rows import printable
from livery_adapters.registry.schema import alias_targets, aliases
from livery_adapters.registry.writing import check_generation

MAX_TARGETS = 64


def find(connection: Connection, name: str, reader: Reader | None = None) -> Alias | None:
    seen = [] if reader is None else [reading.readable(aliases, reader)]
    found = _all(connection, aliases.c.name == name, *seen)
    return found[0] if found else None


def every(connection: Connection, *conditions: ColumnElement[bool]) -> tuple[Alias, ...]:
    """All aliases that conditions fit, by name."""
    return tuple(_all(connection, *conditions))


def page(connection: Connection, owner: str | None, after: str, limit: int | None) -> tuple[Alias, ...]:
    """At most so many aliases of a tenant (None: of everybody) whose names come after one, by name."""
    names = select(aliases.c.name).where(aliases.c.name > after).order_by(aliases.c.name).limit(limit)
    if owner is not None:
        names = names.where(aliases.c.owner == owner)
    return every(connection, aliases.c.name.in_(names))


def set_alias(
    connection: Connection,
    name: str,
    targets: Sequence[AliasTarget],
    sticky: Sticky,
    expected: int | None,
    reserved: Collection[str],
    owner: str,
) -> Alias:
    """See Registry.set_alias."""
    targets = [replace(target, name=printable(target.name)) for target in targets]
    if reading.find(connection, name) is not None:
        raise NameTaken(name, "adapter")
    before = find(connection, name)
    check_generation(name, expected, before.generation if before else 0)
    if before is not None and before.owner != owner:
        raise NameTaken(name, f"alias of tenant {before.owner}")
    _check(connection, name, targets, sticky, reserved, owner)
    if before is not None and (before.targets, before.sticky) == (tuple(targets), sticky):
        return before
    generation = before.generation + 1 if before else 1
    values = {"sticky": sticky, "generation": generation, "updated": time.time()}
    if before is None:
        connection.execute(insert(aliases).values(name=name, owner=owner, **values))
    else:
        connection.execute(update(aliases).where(aliases.c.name == name).values(values))
        connection.execute(delete(alias_targets).where(alias_targets.c.alias == name))
    rows = [
        {"alias": name, "position": position, "target": target.name, "weight": float(target.weight)}
        for position, target in enumerate(targets)
    ]
    connection.execute(insert(alias_targets), rows)
    changes.note(connection, name)
    found = find(connection, name)
    assert found is not None
    return found


def delete_alias(connection: Connection, name: str, expected: int | None, owner: str | None) -> None:
    """See Registry.delete_alias."""
    before = find(connection, name, reader_of(owner))
    if before is None:
        raise UnknownAlias(name)
    check_generation(name, expected, before.generation)
    connection.execute(delete(aliases).where(aliases.c.name == name))
    changes.note(connection, name)


def _check(
    connection: Connection,
    name: str,
    targets: Sequence[AliasTarget],
    sticky: Sticky,
    reserved: Collection[str],
    owner: str,
) -> None:
    if sticky not in get_args(Sticky):
        raise InvalidAlias(name, f"sticky is one of {', '.join(get_args(Sticky))}, not {sticky[:80]!r}")
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise InvalidAlias(name, f"it needs 1 to {MAX_TARGETS} targets and has {len(targets)}")
    if len({target.name for target in targets}) != len(targets):
        raise InvalidAlias(name, "a target is named twice; add its weights up")
    for target in targets:
        if not (math.isfinite(target.weight) and target.weight > 0):
            raise InvalidAlias(
                name, f"the weight of {target.name[:160]!r} is {target.weight}; give a positive one or leave it out"
            )
        if target.name in reserved:
            continue
        found = (reading.find(connection, target.name, reader=reader) for reader in readers_of(owner))
        record = next((record for record in found if record is not None), None)
        if record is None or record.generation == 0:
            raise InvalidAlias(name, f"{target.name[:160]!r} is no adapter; add it first (an alias can't be a target)")


def readers_of(tenant: str) -> tuple[Reader, ...]:
    """Whoever a tenant may be to a name that it may use: its owner, one of the operator's customers, a grantee."""
    return Reader("owner", tenant), Reader("owner", OPERATOR_TENANT), Reader("shared", tenant)


def _all(connection: Connection, *conditions: ColumnElement[bool]) -> list[Alias]:
    query = (
        select(aliases, alias_targets.c.target, alias_targets.c.weight)
        .join(alias_targets, alias_targets.c.alias == aliases.c.name)
        .where(*conditions)
        .order_by(aliases.c.name, alias_targets.c.position)
    )
    found: dict[str, Alias] = {}
    for row in connection.execute(query):
        before = found[row.name].targets if row.name in found else ()
        targets = (*before, AliasTarget(row.target, row.weight))
        found[row.name] = Alias(row.name, targets, row.sticky, row.generation, row.updated, row.owner)
    return list(found.values())
