"""Bringing a database to the schema of this code, by Alembic, without its configuration file.

A new schema is a new file in `versions/` (revision "0002", ...) and a fixture of it beside the tests.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from livery_adapters.registry.errors import RegistryTooNew, RegistryUnreadable

# Its own table name: another program's Alembic table must not be mistaken for ours.
VERSION_TABLE = "livery_schema"
FOLDERS = [str(Path(__file__).parent / "versions")]

# Alembic's `op` and `context` are global to the process.
_one_at_a_time = threading.Lock()


def newest() -> str:
    """The schema version of this code."""
    return known()[0]


def known() -> list[str]:
    """The schema versions that this code can open, newest first."""
    return _known(_scripts())


def migrate(connection: Connection, where: str, to: str = "head") -> None:
    """Bring the database to schema `to`, within the caller's transaction, which keeps others away.

    `where` names it for people. Raises RegistryTooNew, and RegistryUnreadable for a database of something else.
    """
    scripts = _scripts()
    found = current(connection, where)
    revisions = _known(scripts)
    if found is not None and found not in revisions:
        raise RegistryTooNew(where, found, revisions[0])
    if found is None and inspect(connection).get_table_names():
        raise RegistryUnreadable(f"{where} holds tables of something else; give Livery a database of its own")
    if found == revisions[0]:
        return
    context = EnvironmentContext(
        Config(), scripts, fn=lambda revision, _: scripts._upgrade_revs(to, revision), destination_rev=to
    )
    with _one_at_a_time, context:
        context.configure(connection=connection, version_table=VERSION_TABLE)
        context.run_migrations()


def current(connection: Connection, where: str) -> str | None:
    """The schema version of a database, None for one without. Raises RegistryUnreadable."""
    heads = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    if len(heads) > 1:
        raise RegistryUnreadable(f"{where} says it has {len(heads)} schema versions at once; restore a backup")
    return heads[0] if heads else None


def _known(scripts: ScriptDirectory) -> list[str]:
    return [revision.revision for revision in scripts.walk_revisions()]


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent), version_locations=FOLDERS)
