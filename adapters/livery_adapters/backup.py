"""A registry and its blobs as one portable directory, and back, from SQLite to PostgreSQL too.

    backup(registry, data / "adapters", Path("backup"))
    restore(Path("backup"), "postgresql://me@host/livery", other / "adapters")

`registry.jsonl` holds a header with the schema version, one line per row and a last line with their number;
`blobs/` is a blob store with every blob a row refers to. A backup can be made while servers write: the rows are
those of one moment, and blobs never change. It is whole when `registry.jsonl` is there, which is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ClassVar, TextIO

from sqlalchemy import Connection, MetaData, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import Registry, RegistryError, RegistryTooNew, migrations
from livery_adapters.registry import changes as change_log
from livery_adapters.registry.database import Database
from livery_adapters.registry.schema import adapters, aliases, changes, metadata, versions
from livery_adapters.store import BlobStore, StoreBusy

Progress = Callable[[int, int], None]
"""Called with the number of blobs done and of all blobs."""

FORMAT = "livery registry 1"
ROWS = "registry.jsonl"
BLOBS = "blobs"
_BATCH = 500
_ATTEMPTS = 5

# What is in a store was within limits when it came.
_UNLIMITED = Limits(max_weight_bytes=sys.maxsize, max_config_bytes=sys.maxsize)


class BackupError(RegistryError):
    """A backup can't be made, or isn't one that can be restored here."""

    code: ClassVar[str] = "backup_failed"


@dataclass(frozen=True, slots=True)
class Summary:
    """What was copied."""

    adapters: int
    versions: int
    blobs: int


def backup(
    registry: Registry, blobs_root: Path, out_dir: Path, progress: Progress = lambda done, all_: None
) -> Summary:
    """Write a backup into `out_dir`, which is made or must be empty. Blocks.

    Raises BackupError (not empty, a blob missing or damaged), RegistryError, OSError.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    if any(out_dir.iterdir()):
        raise BackupError(f"{out_dir} is not empty; give a backup a directory of its own")
    store, copies = BlobStore(blobs_root, _UNLIMITED), BlobStore(out_dir / BLOBS, _UNLIMITED)
    unfinished = out_dir / f"{ROWS}.part"
    for _ in range(_ATTEMPTS):
        counts, wanted = _write_rows(registry, unfinished)
        gone = _copy_blobs(store, copies, wanted, progress)
        if not gone:
            break
        lost = gone & registry.weights_in_use()
        if lost:
            first = min(lost)
            raise BackupError(
                f"{len(lost)} blobs are missing or damaged in {blobs_root}, the first is {first}; add the adapter "
                f"{', '.join(registry.names_serving([first])[:5]) or 'that had it'} again, or delete it"
            )
    else:
        raise BackupError("adapters were deleted faster than they could be copied; try again when fewer are")
    copies.collect_garbage(wanted, grace_s=0)
    unfinished.rename(out_dir / ROWS)
    _sync_directory(out_dir)
    return Summary(counts["adapters"], counts["versions"], len(wanted))


def restore(
    in_dir: Path, registry_url: str | Path, blobs_root: Path, progress: Progress = lambda done, all_: None
) -> Summary:
    """Bring a backup back into a database and a blob folder that hold nothing yet. Blocks.

    The rows become visible last and all at once, after every blob was copied and found to be what its digest says.
    When it fails, the blobs that no row refers to are removed; those of somebody who was faster stay.
    Raises BackupError (targets not empty, a backup that is no whole one), RegistryTooNew, RegistryError, OSError.
    """
    with tempfile.TemporaryDirectory(prefix="livery-restore-") as folder:
        staged = _stage(in_dir, Path(folder) / "staged.db")
        registry = Registry.open(registry_url)
        try:
            with staged.read() as source:
                return _bring_in(source, registry, BlobStore(in_dir / BLOBS, _UNLIMITED), blobs_root, progress)
        finally:
            registry.close()
            staged.close()


# -- out -----------------------------------------------------------------------------------------------


def _write_rows(registry: Registry, path: Path) -> tuple[dict[str, int], set[str]]:
    """Write all rows of one moment; how many each table has, and the digests of their blobs."""
    counts, wanted = dict.fromkeys(metadata.tables, 0), set()
    with registry.database.read() as connection, path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, "schema": migrations.newest()}) + "\n")
        for name, row in _rows(connection):
            file.write(json.dumps([name, row]) + "\n")
            counts[name] += 1
            if name == versions.name:
                wanted.add(row["weights"])
        file.write(json.dumps({"rows": sum(counts.values())}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return counts, wanted


def _rows(connection: Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with its table's name, tables that others refer to first; the log of changes is the database's own."""
    for table in metadata.sorted_tables:
        if table is changes:
            continue
        query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH)
        for row in connection.execute(query):
            yield table.name, dict(row._mapping)


def _copy_blobs(store: BlobStore, copies: BlobStore, wanted: set[str], progress: Progress) -> set[str]:
    """Copy what isn't there yet; the digests of those that couldn't be."""
    gone, there = set(), set(copies.digests())
    for done, digest in enumerate(sorted(wanted), 1):
        if digest not in there:
            try:
                copies.put(store.path(digest), digest)
            except AdapterRefused as refused:
                if refused.code in ("storage_full", "storage_failed"):
                    raise BackupError(f"the backup can't be written: {refused.message}") from refused
                gone.add(digest)
        progress(done, len(wanted))
    return gone


def _sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- in ------------------------------------------------------------------------------------------------


def _stage(in_dir: Path, path: Path) -> Database:
    """The backup's rows in a database of their schema, brought up to this code's: what can't be read never goes on."""
    try:
        file = (in_dir / ROWS).open(encoding="utf-8")
    except OSError as error:
        raise BackupError(f"{in_dir} holds no whole backup: {ROWS} can't be read ({error.strerror})") from error
    staged = Database(path)
    try:
        with file, staged.write() as connection:
            schema = _schema_of(in_dir, file.readline())
            migrations.migrate(connection, str(in_dir), to=schema)
            tables = MetaData()
            tables.reflect(connection)
            _insert(connection, tables, _parsed(in_dir, file))
            migrations.migrate(connection, str(in_dir))
    except SQLAlchemyError as error:
        raise BackupError(
            f"{in_dir / ROWS} holds rows that don't fit together ({error}); use another backup"
        ) from error
    return staged


def _schema_of(in_dir: Path, header: str) -> str:
    """The schema version that a backup's first line names."""
    try:
        found = json.loads(header)
        known, schema = found["format"] == FORMAT, str(found["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{in_dir / ROWS} doesn't begin as a backup does; use another one") from error
    if not known:
        raise BackupError(f"{in_dir / ROWS} has the format {found['format']!r}, and this version reads {FORMAT!r}")
    if schema not in migrations.known():
        raise RegistryTooNew(f"backup {str(in_dir)!r}", schema, migrations.newest())
    return schema


def _parsed(in_dir: Path, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a backup; raises BackupError unless all are there."""
    count = 0
    for line in file:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BackupError(f"line {count + 2} of {in_dir / ROWS} is damaged; use another backup") from error
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
    raise BackupError(f"{in_dir / ROWS} is cut short or was changed after {count} rows; use another backup")


def _insert(connection: Connection, tables: MetaData, rows: Iterator[tuple[str, dict[str, Any]]]) -> None:
    for name, group in groupby(rows, key=lambda row: row[0]):
        if name not in tables.tables:
            raise BackupError(f"the backup has rows for a table {name[:80]!r} that its schema doesn't have")
        while batch := [row for _, row in islice(group, _BATCH)]:
            connection.execute(insert(tables.tables[name]), batch)


def _bring_in(
    source: Connection, registry: Registry, copies: BlobStore, blobs_root: Path, progress: Progress
) -> Summary:
    store = BlobStore(blobs_root, _UNLIMITED)
    if store.digests():
        raise BackupError(f"{blobs_root} holds blobs already; restore into an empty folder")
    with registry.database.read() as target:
        _check_empty(registry, target)
    wanted = set(source.execute(select(versions.c.weights).distinct()).scalars())
    try:
        with store.publishing():
            bad = _copy_blobs(copies, store, wanted, progress)
            if bad:
                raise BackupError(
                    f"{len(bad)} blobs of the backup are missing or not what their digest says, the first is "
                    f"{min(bad)}; use another backup"
                )
            with registry.database.write() as target:
                _check_empty(registry, target)
                _insert(target, metadata, _rows(source))
                change_log.note(target, *_names(target))
    except BaseException:
        # Another restore, or a server, may have committed what refers to them; whoever is still at it cleans up.
        with contextlib.suppress(StoreBusy, RegistryError, OSError):
            store.collect_garbage(registry.weights_in_use, grace_s=0, timeout_s=0)
        raise
    counts = [source.execute(select(func.count()).select_from(table)).scalar_one() for table in (adapters, versions)]
    return Summary(counts[0], counts[1], len(wanted))


def _names(connection: Connection) -> list[str]:
    return [name for table in (adapters, aliases) for name in connection.execute(select(table.c.name)).scalars()]


def _check_empty(registry: Registry, connection: Connection) -> None:
    """Retired and failed names count too: what they say would contradict the backup."""
    for table in (adapters, aliases):
        if connection.execute(select(table.c.name).limit(1)).first() is not None:
            raise BackupError(f"{registry.database.where} is not empty; restore into a new database")
