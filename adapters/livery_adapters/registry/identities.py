"""What tells a registry from others, and where the files of its versions are: a part of Registry."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import Connection, select, update

from livery_adapters.registry.schema import identity
from livery_adapters.registry.verbs import Verbs


class IdentityVerbs(Verbs):
    """Which registry this is. A backup carries nothing of it."""

    def identity(self) -> str:
        """What tells this registry from others, 32 hex digits."""
        with self.database.read() as connection:
            if (known := _known(connection)) is not None:
                return known
        with self.database.write() as connection:
            return _made(connection)

    def blob_store(self) -> str | None:
        """The object store in which its servers share adapter files, as a URL; None where they share a folder."""
        with self.database.read() as connection:
            found = connection.execute(select(identity.c.blob_store)).scalar()
            return None if found is None else str(found)

    def use_blob_store(self, url: str) -> None:
        """Its servers share adapter files there from now on."""
        if self.blob_store() == url:
            return
        with self.database.write() as connection:
            _made(connection)
            connection.execute(update(identity).values(blob_store=url))


def _known(connection: Connection) -> str | None:
    found = connection.execute(select(identity.c.id)).scalar()
    return None if found is None else str(found)


def _made(connection: Connection) -> str:
    """Within a writing transaction, so that one is made."""
    known = _known(connection)
    if known is None:
        known = uuid4().hex
        connection.execute(identity.insert().values(id=known))
    return known
