"""All adapters in few words: what a table of thousands shows, without reports and profiles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, and_, select

from livery_adapters.names import OPERATOR_TENANT
from livery_adapters.registry.reading import batches
from livery_adapters.registry.rows import STATE_OF
from livery_adapters.registry.schema import adapters, shares, versions

_COLUMNS = (
    *(
        adapters.c[name]
        for name in ("name", "generation", "active", "pinned", "error", "error_code", "retired", "owner")
    ),
    *(versions.c[name] for name in ("digest", "weights", "approximate", "peft_type", "nbytes", "coverage")),
    STATE_OF.label("state"),
)
_QUERY = select(*_COLUMNS).select_from(
    adapters.outerjoin(versions, and_(versions.c.name == adapters.c.name, versions.c.number == adapters.c.active))
)


@dataclass(frozen=True, slots=True)
class Brief:
    """How one name stands. What is said of its active version is empty where `active`, its number, is None."""

    name: str
    generation: int
    state: str
    active: int | None
    pinned: bool
    error: str | None
    error_code: str | None
    digest: str
    weights: str  # the digest of its files
    peft_type: str
    rank: int  # the highest of its modules', 0 where it has none
    approximate: int  # the rank that it was to be factorised to, 0 where it is applied as it is
    nbytes: int
    owner: str = OPERATOR_TENANT
    grantees: tuple[str, ...] = ()  # the tenants it is shared with


def briefs(connection: Connection, names: Iterable[str] | None) -> list[Brief]:
    """Those of `names` that aren't retired, None for all."""
    some: Sequence[list[str] | None] = [None] if names is None else list(batches(names))
    found = [row for few in some for row in connection.execute(_among(_QUERY, adapters, few))]
    granted = [row for few in some for row in connection.execute(_among(select(shares), shares, few))]
    grantees: dict[str, list[str]] = {}
    for row in granted:
        grantees.setdefault(row.name, []).append(row.grantee)
    return [
        Brief(
            row.name,
            row.generation,
            row.state,
            row.active,
            row.pinned,
            row.error,
            row.error_code,
            row.digest or "",
            row.weights or "",
            row.peft_type or "",
            _rank(row.coverage),
            row.approximate or 0,
            row.nbytes or 0,
            row.owner,
            tuple(grantees.get(row.name, ())),
        )
        for row in found
        if row.state != "retired"
    ]


def _among(query: Select[Any], table: Table, names: list[str] | None) -> Select[Any]:
    return query if names is None else query.where(table.c.name.in_(names))


def _rank(coverage: str | None) -> int:
    found = json.loads(coverage).get("ranks") if coverage else None
    return max(found) if found else 0
