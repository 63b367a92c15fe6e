"""What followed folders gave, each within a transaction of the caller. Servers of one registry may follow one each."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, and_, not_, select, update

from livery_adapters.names import FOLDER
from livery_adapters.registry import reading, writing
from livery_adapters.registry.records import Given
from livery_adapters.registry.schema import adapters


def given(connection: Connection, follower: str) -> dict[str, Given]:
    """See Registry.given."""
    withdrawn = and_(reading.RETIRED, adapters.c.folder_digest.is_(None))
    his = (adapters.c.follower == follower) | adapters.c.follower.is_(None)
    columns = (adapters.c.name, adapters.c.origin, adapters.c.error, adapters.c.retired, adapters.c.follower)
    rows = connection.execute(select(*columns).where(adapters.c.source == FOLDER, his, not_(withdrawn)))
    return {
        row.name: Given(
            origin=row.origin if row.error is None else "",
            claimed=row.follower is not None,
            listed=not row.retired or row.error is not None,
        )
        for row in rows
    }


def claim(connection: Connection, names: Iterable[str], follower: str) -> None:
    """See Registry.claim."""
    nobodys = (adapters.c.source == FOLDER) & adapters.c.follower.is_(None)
    for some in reading.batches(names):
        connection.execute(update(adapters).where(nobodys, adapters.c.name.in_(some)).values(follower=follower))


def withdraw(connection: Connection, name: str, follower: str) -> bool:
    """See Registry.withdraw."""
    row = reading.row_of(connection, name)
    if row is None or row.follower != follower:
        return False
    if row.folder_digest is not None:
        connection.execute(update(adapters).where(adapters.c.name == name).values(folder_digest=None))
    if row.source != FOLDER or (row.retired and row.error is None):
        return False
    writing.retire(connection, name, None, None)
    return True
