"""All adapters in few words: what a table of thousands shows, without reports and profiles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection, and_, select

from livery_adapters.registry.rows import STATE_OF
from livery_adapters.registry.schema import adapters, versions

_BATCH = 500  # values per query
_COLUMNS = (
    *(adapters.c[name] for name in ("name", "generation", "active", "pinned", "error", "error_code", "retired")),
    *(versions.c[name] for name in ("digest", "weights", "peft_type", "nbytes", "coverage")),
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
    nbytes: int


def briefs(connection: Connection, names: Iterable[str] | None) -> list[Brief]:
    """Those of `names` that aren't retired, None for all."""
    queries = [_QUERY] if names is None else [_QUERY.where(adapters.c.name.in_(some)) for some in _batches(names)]
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
            row.nbytes or 0,
        )
        for query in queries
        for row in connection.execute(query)
        if row.state != "retired"
    ]


def _rank(coverage: str | None) -> int:
    found = json.loads(coverage).get("ranks") if coverage else None
    return max(found) if found else 0


def _batches(values: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(values)
    while some := list(islice(remaining, _BATCH)):
        yield some
