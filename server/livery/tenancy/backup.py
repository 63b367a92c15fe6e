"""Tenants, keys and usage as a file beside a registry's backup, and back. Keys stay what they are: digests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import func, select, update

from livery.tenancy.migrations import MIGRATIONS
from livery.tenancy.schema import keys, metadata, state, tenants
from livery.tenancy.store import TenantStore
from livery_adapters.registry.database import Database
from livery_adapters.row_file import BackupError, RowFile, put

ROWS = "tenants.jsonl"
_FILE = RowFile("livery tenants 1", MIGRATIONS, metadata)


def write(store: TenantStore, out_dir: Path) -> None:
    """Put the rows of one moment into `out_dir`. Raises RegistryError, OSError."""
    with store.database.read() as connection:
        _FILE.write(connection, out_dir / ROWS)


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


def check_empty(store: TenantStore) -> None:
    """Raises BackupError where there is more than the operator's own tenant, or where a key was ever made."""
    if store.keyed() or len(store.tenants()) > 1:
        raise BackupError(f"{store.database.where} is not empty; restore into a new one")


def bring_in(source: Database, store: TenantStore) -> tuple[int, int]:
    """Put what was staged in the place of what is there; how many tenants and keys that is. Raises BackupError."""
    with source.read() as staged_rows:
        check_empty(store)
        with store.database.write() as connection:
            before = connection.execute(select(state.c.changes)).scalar_one()
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
            put(connection, metadata, _FILE.rows(staged_rows))
            # A number that nobody has seen: a server that runs on the database reads everything again.
            connection.execute(update(state).values(changes=state.c.changes + before + 1))
        counts = [
            staged_rows.execute(select(func.count()).select_from(table)).scalar_one() for table in (tenants, keys)
        ]
    return counts[0], counts[1]
