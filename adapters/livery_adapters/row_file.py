"""The rows of a schema as a file of lines, and back into a database, also into one of another kind or a newer schema.

The first line holds the format and the schema's version, the last one the number of rows; each line between is a
table's name and a row. What is cut short or was changed is never taken for a whole one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, zip_longest
from pathlib import Path
from typing import Any, ClassVar, TextIO

from sqlalchemy import Connection, MetaData, Table, insert, select
from sqlalchemy.exc import SQLAlchemyError

from livery_adapters.registry.database import Database
from livery_adapters.registry.errors import RegistryError, RegistryTooNew
from livery_adapters.registry.migrating import Migrations

_BATCH = 500


class BackupError(RegistryError):
    """A backup can't be made, or isn't one that can be restored here."""

    code: ClassVar[str] = "backup_failed"


@dataclass(frozen=True, slots=True)
class RowFile:
    """What is written for one schema: all tables of `metadata` but `skipped`, which are the database's own affair."""

    format: str
    migrations: Migrations
    metadata: MetaData
    skipped: Sequence[Table] = ()

    def write(self, connection: Connection, path: Path) -> dict[str, int]:
        """Write all rows of the connection's moment, on disk at the end; how many each table has."""
        counts = dict.fromkeys(self.metadata.tables, 0)
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"format": self.format, "schema": self.migrations.newest()}) + "\n")
            for name, row in self.rows(connection):
                file.write(json.dumps([name, row]) + "\n")
                counts[name] += 1
            file.write(json.dumps({"rows": sum(counts.values())}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return counts

    def rows(self, connection: Connection) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row with its table's name, tables that others refer to first."""
        for table in self.metadata.sorted_tables:
            if table in self.skipped:
                continue
            query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH)
            for row in connection.execute(query):
                yield table.name, dict(row._mapping)

    def same(self, one: Connection, other: Connection) -> bool:
        """Whether two databases hold the same rows."""
        return all(mine == theirs for mine, theirs in zip_longest(self.rows(one), self.rows(other)))

    def stage(self, source: Path, path: Path) -> Database:
        """The file's rows in a database at `path` of their schema, brought up to this code's.

        What can't be read never goes on. Raises BackupError, RegistryTooNew.
        """
        try:
            file = source.open(encoding="utf-8")
        except OSError as error:
            raise BackupError(
                f"{source.parent} holds no whole backup: {source.name} can't be read ({error.strerror})"
            ) from error
        staged = Database(path)
        try:
            with file, staged.write() as connection:
                schema = self._schema_of(source, file.readline())
                self.migrations.migrate(connection, str(source.parent), to=schema)
                tables = MetaData()
                tables.reflect(connection)
                for table in reversed(tables.sorted_tables):  # what a schema begins with is in the file as well
                    if table.name in self.metadata.tables:
                        connection.execute(table.delete())
                put(connection, tables, _parsed(source, file))
                self.migrations.migrate(connection, str(source.parent))
        except SQLAlchemyError as error:
            raise BackupError(f"{source} holds rows that don't fit together ({error}); use another backup") from error
        return staged

    def _schema_of(self, source: Path, header: str) -> str:
        """The schema version that a backup's first line names."""
        try:
            found = json.loads(header)
            known, schema = found["format"] == self.format, str(found["schema"])
        except (ValueError, KeyError, TypeError) as error:
            raise BackupError(f"{source} doesn't begin as a backup does; use another one") from error
        if not known:
            raise BackupError(f"{source} has the format {found['format']!r}, and this version reads {self.format!r}")
        if schema not in self.migrations.known():
            raise RegistryTooNew(f"backup {str(source.parent)!r}", schema, self.migrations.newest())
        return schema


def put(connection: Connection, tables: MetaData, rows: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """Insert rows, table by table. Raises BackupError for a table that isn't there."""
    for name, group in groupby(rows, key=lambda row: row[0]):
        if name not in tables.tables:
            raise BackupError(f"the backup has rows for a table {name[:80]!r} that its schema doesn't have")
        while batch := [row for _, row in islice(group, _BATCH)]:
            connection.execute(insert(tables.tables[name]), batch)


def _parsed(source: Path, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a backup; raises BackupError unless all are there."""
    count = 0
    for line in file:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BackupError(f"line {count + 2} of {source} is damaged; use another backup") from error
        if isinstance(value, dict):
            if value == {"rows": count} and not file.read(1):
                return
            break
        match value:
            case [str(name), dict(row)]:
                count += 1
                yield name, row
            case _:
                break
    raise BackupError(f"{source} is cut short or was changed after {count} rows; use another backup")
