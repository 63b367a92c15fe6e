"""Tenants, keys and usage as a file beside a registry's backup, and back. Keys stay what they are: digests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection, Table, func, select, update

from livery.tenancy.migrations import MIGRATIONS
from livery.tenancy.schema import keys, levels, metadata, state, tenants, usage
from livery.tenancy.store import TenantStore
from livery_adapters.registry.database import Database
from livery_adapters.row_file import BackupError, RowFile, put

ROWS = "tenants.jsonl"
_FILE = RowFile("livery tenants 1", MIGRATIONS, metadata, (levels,))  # those are of the moment
_COMPARED = replace(_FILE, skipped=(levels, state))  # whose number of changes is each database's own


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied. `usage_rows`: one per hour, tenant, key and adapter version."""

    tenants: int = 0
    keys: int = 0
    usage_rows: int = 0


def write(store: TenantStore, out_dir: Path) -> Copied:
    """Put the rows of one moment into `out_dir`. Raises RegistryError, OSError."""
    with store.database.read() as connection:
        counts = _FILE.write(connection, out_dir / ROWS)
    return Copied(counts[tenants.name], counts[keys.name], counts[usage.name])


@contextmanager
def staged(in_dir: Path) -> Iterator[Database | None]:
    """The rows of a backup, read and checked; None where it has none, as those of older versions.

    Raises BackupError, RegistryTooNew.
    """
    if not (in_dir / ROWS).exists():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="livery-restore-") as folder:
        database = _FILE.stage(in_dir / ROWS, Path(folder) / "staged.db")
        try:
            yield database
        finally:
            database.close()


def check_empty(store: TenantStore, source: Database | None) -> None:
    """Raises BackupError where there is more than the operator's own tenant, a key was ever made or anything used.

    What was brought in from `source` before is no hindrance.
    """
    with store.database.read() as connection:
        if source is None:
            _check_empty(store, connection)
            return
        with source.read() as staged_rows:
            if not _COMPARED.same(staged_rows, connection):
                _check_empty(store, connection)


def bring_in(source: Database, store: TenantStore) -> Copied:
    """Put what was staged in the place of what is there. Raises BackupError."""
    with source.read() as staged_rows, store.database.write() as connection:
        if _COMPARED.same(staged_rows, connection):
            return _copied(connection)
        _check_empty(store, connection)
        before = connection.execute(select(state.c.changes)).scalar_one()
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
        put(connection, metadata, _FILE.rows(staged_rows))
        # A number that nobody has seen: a server that runs on the database reads everything again.
        connection.execute(update(state).values(changes=state.c.changes + before + 1))
        return _copied(connection)


def _copied(connection: Connection) -> Copied:
    return Copied(*(_count(connection, table) for table in (tenants, keys, usage)))


def _check_empty(store: TenantStore, connection: Connection) -> None:
    keyed = connection.execute(select(state.c.keyed)).scalar_one()
    if keyed or _count(connection, tenants) > 1 or _count(connection, usage):
        raise BackupError(f"{store.database.where} is not empty: it has tenants, keys or usage; restore into a new one")


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())
