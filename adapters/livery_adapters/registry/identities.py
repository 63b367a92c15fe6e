"""What tells a registry from others."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import select

from livery_adapters.registry.database import Database
from livery_adapters.registry.schema import identity


def identity_of(database: Database) -> str:
    """See Registry.identity."""
    look = select(identity.c.id)
    with database.read() as connection:
        if (known := connection.execute(look).scalar()) is not None:
            return str(known)
    with database.write() as connection:
        known = connection.execute(look).scalar()
        if known is None:
            known = uuid4().hex
            connection.execute(identity.insert().values(id=known))
        return str(known)
