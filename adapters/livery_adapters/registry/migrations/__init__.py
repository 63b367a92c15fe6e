"""The schema of the registry, as revisions. See `livery_adapters.registry.migrating`.

A new schema is a new file in `versions/` (revision "0002", ...) and a fixture of it beside the tests.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from livery_adapters.registry.migrating import Migrations

VERSION_TABLE = "livery_schema"
FOLDERS = [str(Path(__file__).parent / "versions")]


def newest() -> str:
    """See Migrations.newest."""
    return own().newest()


def known() -> list[str]:
    """See Migrations.known."""
    return own().known()


def migrate(connection: Connection, where: str, to: str = "head") -> None:
    """See Migrations.migrate."""
    own().migrate(connection, where, to)


def current(connection: Connection, where: str) -> str | None:
    """See Migrations.current."""
    return own().current(connection, where)


def own() -> Migrations:
    """The registry's."""
    return Migrations(FOLDERS, VERSION_TABLE)
