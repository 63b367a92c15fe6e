"""Adapter files by content: a directory that holds each version once, under its digest, and never changes it.

    store = BlobStore(Path("data"))
    digest = store.put(Path("adapters/pirate"))   # copies the two files, hashing what it copies
    store.path(digest)                            # a directory to read from until remove(digest)

Knows no names, no manifests and no engine. Every call blocks on the disk: use a worker thread. Calls from
several threads may overlap; `remove` while somebody still reads is the caller's mistake.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import BinaryIO

from livery_adapters.layout import digest_of
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused, Limits
from livery_adapters.tensor_file import CHUNK, CONFIG_NAME, FILE_NAMES, open_regular

_DIGEST = re.compile(r"[0-9a-f]{64}")
_STALE_SECONDS = 3600


class BlobStore:
    """The only writer below `root`. A blob is `root/sha256/ab/<64 hex>/` with the two files, read-only."""

    def __init__(self, root: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self.root = root
        self._limits = limits
        self._blobs = root / "sha256"
        self._incoming = root / "incoming"  # on the same file system, so that a rename publishes
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(exist_ok=True)
        self._sweep()

    def put(self, directory: Path, expected: str | None = None) -> str:
        """Copy an adapter's two files in and return their digest. Raises AdapterRefused, OSError.

        The digest is that of the bytes copied, whatever happens to `directory` meanwhile; when it is not
        the `expected` one, nothing is kept and the adapter is refused as incomplete. A version that is held
        already stays as it is unless its files have changed, as on a failing disk: then they are replaced.
        """
        incoming = self._incoming / uuid.uuid4().hex
        incoming.mkdir()
        try:
            digest = digest_of({name: self._copy(directory, name, incoming) for name in FILE_NAMES})
            if expected not in (None, digest):
                raise AdapterRefused(
                    "incomplete", f"the files of {directory.name!r} changed while they were read; it is tried again"
                )
            _sync_directory(incoming)
            self._publish(incoming, digest)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return digest

    def path(self, digest: str) -> Path:
        """Where a version's files are. The one place where a digest becomes a path. Raises ValueError."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is not a SHA-256 digest in lower-case hex")
        return self._blobs / digest[:2] / digest

    def remove(self, digest: str) -> None:
        """Delete a version. Unknown digests are ignored; half a deletion is never seen as a blob."""
        trash = self._incoming / uuid.uuid4().hex
        with contextlib.suppress(FileNotFoundError):
            self.path(digest).rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def digests(self) -> list[str]:
        """Every version held, sorted."""
        return sorted(entry.name for entry in self._blobs.glob("??/*") if _DIGEST.fullmatch(entry.name))

    def _copy(self, directory: Path, name: str, incoming: Path) -> str:
        limit = self._limits.max_config_bytes if name == CONFIG_NAME else self._limits.max_weight_bytes
        digest, size = hashlib.sha256(), 0
        with open_regular(directory, name) as source, (incoming / name).open("xb") as target:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise AdapterRefused("too_large", f"{name} is over the limit of {limit} bytes")
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
            os.fchmod(target.fileno(), 0o444)
        return digest.hexdigest()

    def _publish(self, incoming: Path, digest: str) -> None:
        final = self.path(digest)
        final.parent.mkdir(exist_ok=True)
        if final.is_dir() and not _holds(final, digest):
            self.remove(digest)
        if not final.is_dir():
            # Another thread may have been faster: a directory that is not empty is never replaced.
            with contextlib.suppress(FileExistsError, OSError):
                incoming.rename(final)
        if not final.is_dir():
            raise OSError(f"could not publish blob {digest} in {self._blobs.name}")
        _sync_directory(final.parent)

    def _sweep(self) -> None:
        """Drop what a crash left half-copied; a copy under way elsewhere is younger than this."""
        for leftover in self._incoming.iterdir():
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def _holds(directory: Path, digest: str) -> bool:
    """Whether the files are still those that gave this digest."""
    found = {}
    try:
        for name in FILE_NAMES:
            with open_regular(directory, name) as stream:
                found[name] = _sha256(stream)
    except (AdapterRefused, OSError):
        return False
    return digest_of(found) == digest


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
