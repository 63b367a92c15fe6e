"""The log by which other processes learn what changed. Bounded: who falls behind is told that anything may have."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, insert, select

from livery_adapters.registry.schema import changes

KEPT = 10_000


def note(connection: Connection, *names: str) -> None:
    """Log that these names changed."""
    if not names:
        return
    newest = _newest(connection)
    rows = [{"sequence": newest + number, "name": name} for number, name in enumerate(names, 1)]
    connection.execute(insert(changes), rows)
    connection.execute(delete(changes).where(changes.c.sequence <= newest + len(names) - KEPT))


def since(connection: Connection, seen: int) -> tuple[int, tuple[str, ...] | None]:
    """Where the log stands, and the names changed after `seen`; None: anything may have changed."""
    query = select(changes.c.sequence, changes.c.name).where(changes.c.sequence >= seen).order_by(changes.c.sequence)
    rows = connection.execute(query).all() if seen >= 0 else []
    if rows and rows[0].sequence == seen:
        return rows[-1].sequence, tuple(dict.fromkeys(row.name for row in rows[1:]))
    if rows and seen == 0 and rows[0].sequence == 1:
        return rows[-1].sequence, tuple(dict.fromkeys(row.name for row in rows))
    newest = _newest(connection)
    return newest, () if newest == seen else None


def _newest(connection: Connection) -> int:
    newest: int = connection.execute(select(func.coalesce(func.max(changes.c.sequence), 0))).scalar_one()
    return newest
