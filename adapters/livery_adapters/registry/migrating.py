"""Bringing a database to the schema of this code, by Alembic, without its configuration file.

A schema is a folder of revisions and a table that says which of them a database has. Several schemas may share a
database: each has a version table of its own, and leaves the others' tables alone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from livery_adapters.registry.errors import RegistryTooNew, RegistryUnreadable

# How the version tables of all schemas begin: another program's Alembic table must not be mistaken for ours.
OURS = "livery_"

# Alembic's `op` and `context` are global to the process.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Migrations:
    """One schema: its revisions lie in `folders`, and a database's own is told by `version_table`."""

    folders: Sequence[str]
    version_table: str

    def newest(self) -> str:
        """The schema version of this code."""
        return self.known()[0]

    def known(self) -> list[str]:
        """The schema versions that this code can open, newest first."""
        return [revision.revision for revision in self._scripts().walk_revisions()]

    def migrate(self, connection: Connection, where: str, to: str = "head") -> None:
        """Bring the database to schema `to`, within the caller's transaction, which keeps others away.

        `where` names it for people. Raises RegistryTooNew, and RegistryUnreadable for a database of something else.
        """
        found = self.current(connection, where)
        revisions = self.known()
        if found is not None and found not in revisions:
            raise RegistryTooNew(where, found, revisions[0])
        if found is None:
            tables = inspect(connection).get_table_names()
            if tables and not any(name.startswith(OURS) for name in tables):
                raise RegistryUnreadable(f"{where} holds tables of something else; give Livery a database of its own")
        if found == revisions[0]:
            return
        scripts = self._scripts()
        context = EnvironmentContext(
            Config(), scripts, fn=lambda revision, _: scripts._upgrade_revs(to, revision), destination_rev=to
        )
        with _one_at_a_time, context:
            context.configure(connection=connection, version_table=self.version_table)
            context.run_migrations()

    def current(self, connection: Connection, where: str) -> str | None:
        """The schema version of a database, None for one without. Raises RegistryUnreadable."""
        heads = MigrationContext.configure(connection, opts={"version_table": self.version_table}).get_current_heads()
        if len(heads) > 1:
            raise RegistryUnreadable(f"{where} says it has {len(heads)} schema versions at once; restore a backup")
        return heads[0] if heads else None

    def _scripts(self) -> ScriptDirectory:
        return ScriptDirectory(self.folders[0], version_locations=list(self.folders))
