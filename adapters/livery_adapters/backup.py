"""A registry and its blobs as one portable directory, and back, from SQLite to PostgreSQL too.

    backup(registry, data / "adapters", Path("backup"))
    restore(Path("backup"), "postgresql://me@host/livery", other / "adapters")

Where servers share an object store (`shared`), a backup holds the files of every version nevertheless: those that this
folder has no copy of come from there. Restoring puts them into the one that is given.

`registry.jsonl` holds a header with the schema version, one line per row and a last line with their number;
`blobs/` is a blob store with every blob a row refers to. A backup can be made while servers write: the rows are
those of one moment, and blobs never change. It is whole when `registry.jsonl` is there, which is written last.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, func, select

from livery_adapters.blobs import Blobs
from livery_adapters.refusal import TAKEN_IN, AdapterRefused
from livery_adapters.registry import Registry, RegistryError, migrations
from livery_adapters.registry import changes as change_log
from livery_adapters.registry.schema import adapters, aliases, changes, identity, metadata, versions
from livery_adapters.row_file import BackupError, RowFile, put
from livery_adapters.shared_blobs import SharedBlobs
from livery_adapters.store import BlobStore, StoreBusy

__all__ = ["BackupError", "Summary", "backup", "restore"]

Progress = Callable[[int, int], None]
"""Called with the number of blobs done and of all blobs."""

FORMAT = "livery registry 1"
ROWS = "registry.jsonl"
BLOBS = "blobs"
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Summary:
    """What was copied."""

    adapters: int
    versions: int
    blobs: int


def backup(
    registry: Registry,
    blobs_root: Path,
    out_dir: Path,
    progress: Progress = lambda done, all_: None,
    beside: Callable[[Path], None] = lambda out_dir: None,
    shared: SharedBlobs | None = None,
) -> Summary:
    """Write a backup into `out_dir`, which is made or must be empty. Blocks.

    `beside` puts what else belongs to it into the directory, before it counts as whole.

    Raises BackupError (not empty, a blob missing or damaged), AdapterRefused (blobs_unavailable), RegistryError,
    OSError.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    if any(out_dir.iterdir()):
        raise BackupError(f"{out_dir} is not empty; give a backup a directory of its own")
    store, copies = BlobStore(blobs_root, TAKEN_IN), BlobStore(out_dir / BLOBS, TAKEN_IN)
    unfinished = out_dir / f"{ROWS}.part"
    for _ in range(_ATTEMPTS):
        counts, wanted = _write_rows(registry, unfinished)
        gone = _copy_blobs(store, copies, wanted, progress, shared)
        if not gone:
            break
        lost = gone & registry.weights_in_use()
        if lost:
            first, places = min(lost), f"{blobs_root} and {shared}" if shared else str(blobs_root)
            raise BackupError(
                f"{len(lost)} blobs are missing or damaged in {places}, the first is {first}; add the adapter "
                f"{', '.join(registry.names_serving([first])[:5]) or 'that had it'} again, or delete it"
            )
    else:
        raise BackupError("adapters were deleted faster than they could be copied; try again when fewer are")
    copies.collect_garbage(wanted, grace_s=0)
    beside(out_dir)
    unfinished.rename(out_dir / ROWS)
    _sync_directory(out_dir)
    return Summary(counts["adapters"], counts["versions"], len(wanted))


def restore(
    in_dir: Path,
    registry_url: str | Path,
    blobs_root: Path,
    progress: Progress = lambda done, all_: None,
    beside: Callable[[], None] = lambda: None,
    shared: SharedBlobs | None = None,
) -> Summary:
    """Bring a backup back into a database and a blob folder that hold nothing yet, or part of it. Blocks.

    The rows become visible last and all at once, after every blob was copied and found to be what its digest says;
    `beside` restores what else belongs to it before they do. The backup is only read.
    When it fails, the blobs that no row refers to are removed; those of somebody who was faster stay. One that was
    killed is gone on with by the next.
    Raises BackupError (targets not empty, a backup that is no whole one), AdapterRefused (blobs_unavailable,
    blobs_of_another), RegistryTooNew, RegistryError, OSError.
    """
    with tempfile.TemporaryDirectory(prefix="livery-restore-") as folder:
        staged = _row_file().stage(in_dir / ROWS, Path(folder) / "staged.db")
        registry = Registry.open(registry_url)
        try:
            with staged.read() as source:
                store = BlobStore(blobs_root, TAKEN_IN, shared)
                return _bring_in(source, registry, Blobs(in_dir / BLOBS), store, progress, beside)
        finally:
            registry.close()
            staged.close()


# -- out -----------------------------------------------------------------------------------------------


def _row_file() -> RowFile:
    """The log of changes and its identity are the database's own."""
    return RowFile(FORMAT, migrations.own(), metadata, (changes, identity))


def _write_rows(registry: Registry, path: Path) -> tuple[dict[str, int], set[str]]:
    """Write all rows of one moment; how many each table has, and the digests of their blobs."""
    with registry.database.read() as connection:
        counts = _row_file().write(connection, path)
        return counts, set(connection.execute(select(versions.c.weights).distinct()).scalars())


def _copy_blobs(
    store: Blobs, copies: BlobStore, wanted: set[str], progress: Progress, shared: SharedBlobs | None = None
) -> set[str]:
    """Copy what isn't there yet, from the object store what `store` hasn't; the digests of those that couldn't be.

    Raises BackupError, AdapterRefused (blobs_unavailable).
    """
    # What an interrupted run left is as good as a copy, but for an object store that this one is told of.
    gone, there = set(), set(copies.digests() if copies.shared is None else ())
    fetching = BlobStore(copies.root, TAKEN_IN, shared)
    for done, digest in enumerate(sorted(wanted), 1):
        if digest not in there and not _copied(store, copies, digest) and not _fetched(fetching, digest):
            gone.add(digest)
        progress(done, len(wanted))
    return gone


def _copied(store: Blobs, copies: BlobStore, digest: str) -> bool:
    with _written():
        copies.put(store.path(digest), digest)
        return True
    return False


def _fetched(fetching: BlobStore, digest: str) -> bool:
    with _written():
        return fetching.bring(digest)
    return False


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Swallows that a blob is missing or damaged.

    Raises BackupError, AdapterRefused (blobs_unavailable, blobs_of_another).
    """
    try:
        yield
    except AdapterRefused as refused:
        if refused.code in ("storage_full", "storage_failed"):
            raise BackupError(f"the backup can't be written: {refused.message}") from refused
        if refused.code in ("blobs_unavailable", "blobs_of_another"):
            raise


def _sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- in ------------------------------------------------------------------------------------------------


def _bring_in(
    source: Connection,
    registry: Registry,
    copies: Blobs,
    store: BlobStore,
    progress: Progress,
    beside: Callable[[], None],
) -> Summary:
    wanted = set(source.execute(select(versions.c.weights).distinct()).scalars())
    _take(store, registry, wanted)
    with registry.database.read() as target:
        _is_there(source, registry, target)
    try:
        with store.publishing():
            bad = _copy_blobs(copies, store, wanted, progress)
            if bad:
                raise BackupError(
                    f"{len(bad)} blobs of the backup are missing or not what their digest says, the first is "
                    f"{min(bad)}; use another backup"
                )
            beside()
            with registry.database.write() as target:
                if not _is_there(source, registry, target):
                    put(target, metadata, _row_file().rows(source))
                    change_log.note(target, *_names(target))
    except BaseException:
        # Another restore, or a server, may have committed what refers to them; whoever is still at it cleans up.
        with contextlib.suppress(StoreBusy, RegistryError, AdapterRefused, OSError):
            store.collect_garbage(registry.weights_in_use, grace_s=0, timeout_s=0)
        raise
    if store.shared is not None:
        registry.use_blob_store(str(store.shared))
    counts = [source.execute(select(func.count()).select_from(table)).scalar_one() for table in (adapters, versions)]
    return Summary(counts[0], counts[1], len(wanted))


def _take(store: BlobStore, registry: Registry, wanted: set[str]) -> None:
    """Have the folder be the registry's. Raises BackupError where it holds what no restore into that one left there."""
    store.belong_to(registry.identity, registry.weights_in_use)
    try:
        store.claim()
        strange = set(store.digests()) - wanted
    except AdapterRefused as refused:
        raise BackupError(f"{store.root} holds blobs already; restore into an empty folder") from refused
    if strange:
        raise BackupError(f"{store.root} holds blobs already; restore into an empty folder")


def _names(connection: Connection) -> list[str]:
    return [name for table in (adapters, aliases) for name in connection.execute(select(table.c.name)).scalars()]


def _is_there(source: Connection, registry: Registry, target: Connection) -> bool:
    """Whether the registry holds this backup's rows, and nothing was done with it since. Raises BackupError.

    Retired and failed names count too: what they say would contradict the backup.
    """
    for table in (adapters, aliases):
        if target.execute(select(table.c.name).limit(1)).first() is not None:
            if _row_file().same(source, target):
                return True
            raise BackupError(f"{registry.database.where} is not empty; restore into a new database")
    return False
