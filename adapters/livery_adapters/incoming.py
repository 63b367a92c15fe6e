"""An adapter on its way into a blob store: its two files are written, hashed and measured in one pass.

`BlobStore.incoming()` makes one and publishes it; a source (upload, hub, object store, directory) fills it. Every
byte is hashed and counted as it is written, so that nothing is read a second time to learn the digest, and nothing
over a limit is ever on disk in full. One thread may use it at a time; it may be handed from thread to thread, and
its context may end in another one: that waits for the call under way, and the thread's next call fails.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from livery_adapters.layout import digest_of
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.tensor_file import CHUNK, CONFIG_NAME, FILE_NAMES, open_regular

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(slots=True)
class _File:
    """One file being written: `expected` is the announced length in bytes, None when nobody said."""

    fd: int
    expected: int | None
    size: int = 0
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)


class Incoming:
    """The two files of one adapter, as far as they have arrived, in a directory nobody else looks into.

    begin/write (or read, or copy) -> seal -> look at `path` -> publish -> done. Files arrive one after the other
    in any order. The context of `BlobStore.incoming` removes whatever was not published.
    """

    def __init__(
        self, path: Path, limits: Limits, publish: Callable[[Path, str], Path], done: Callable[[], None]
    ) -> None:
        """For the store: `path` is an empty directory, `publish(path, digest)` makes it a blob, `done` follows that."""
        self._path = path
        self._limits = limits
        self._publish = publish
        self._done = done
        self._open: dict[str, _File] = {}  # at most one
        self._hashes: dict[str, str] = {}
        self._digest: str | None = None
        self._lock = threading.RLock()  # a file must not be closed under a thread that writes: its number is reused
        self._closed = False

    @property
    def path(self) -> Path:
        """The directory of the files. After `seal` they are complete, on disk and read-only."""
        return self._path

    @property
    def digest(self) -> str:
        """The adapter's digest. Raises RuntimeError before `seal`."""
        if self._digest is None:
            raise RuntimeError("the digest is known once the incoming adapter is sealed")
        return self._digest

    def limit(self, name: str) -> int:
        """The most bytes that the file may have. Raises AdapterRefused (unexpected_file)."""
        if name not in FILE_NAMES:
            raise AdapterRefused(
                "unexpected_file",
                f"{name[:80]!r} is no file of an adapter; send {' and '.join(FILE_NAMES)} and nothing else",
            )
        return self._limits.max_config_bytes if name == CONFIG_NAME else self._limits.max_weight_bytes

    def check_size(self, name: str, size: int) -> None:
        """Refuse a file by its announced length in bytes, before anything of it is sent.

        Raises AdapterRefused (unexpected_file, too_large).
        """
        if size > self.limit(name):
            raise _too_large(name, self.limit(name))

    def begin(self, name: str, size: int | None = None) -> None:
        """Start a file, ending the one before; `size` is its announced length in bytes.

        Raises AdapterRefused: unexpected_file, duplicate_file (begun before), too_large (from the announced length
        alone), incomplete (the file before it has not the length announced), storage_full, storage_failed.
        """
        self.check_size(name, size or 0)
        if self._digest is not None:
            raise RuntimeError("a sealed adapter takes no more files")
        if name in self._open or name in self._hashes:
            raise AdapterRefused("duplicate_file", f"{name} was sent twice; send each of the two files once")
        with self._in_use():
            self._end()
            with storing():
                fd = os.open(self._path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._open[name] = _File(fd, size)

    def write(self, name: str, chunk: bytes | bytearray | memoryview) -> None:
        """Append to a file, beginning it when it is new. Raises AdapterRefused as `begin` does."""
        with self._in_use():
            if name not in self._open:
                self.begin(name)
            file = self._open[name]
            file.size += len(chunk)
            if file.size > self.limit(name):
                raise _too_large(name, self.limit(name))
            file.hash.update(chunk)
            view = memoryview(chunk)
            with storing():
                while view:
                    view = view[os.write(file.fd, view) :]

    def read(self, name: str, stream: BinaryIO, size: int | None = None) -> None:
        """Take a whole file from a stream. Raises AdapterRefused (as `write`, and unreadable)."""
        self.begin(name, size)
        buffer = bytearray(CHUNK)
        view = memoryview(buffer)
        while count := _read_into(name, stream, view):
            self.write(name, view[:count])

    def copy(self, directory: Path) -> None:
        """Take both files of a directory; neither it nor they may be links. Raises AdapterRefused."""
        for name in FILE_NAMES:
            with open_regular(directory, name) as stream:
                self.read(name, stream)

    def seal(self) -> str:
        """Bring both files to the disk for good and return the adapter's digest.

        Raises AdapterRefused (missing_config, missing_weights, incomplete, storage_full, storage_failed).
        """
        with self._in_use():
            if self._digest is None:
                self._end()
                for name in FILE_NAMES:
                    if name not in self._hashes:
                        code = "missing_config" if name == CONFIG_NAME else "missing_weights"
                        raise AdapterRefused(code, f"{name} did not arrive; send {' and '.join(FILE_NAMES)}")
                with storing():
                    sync_directory(self._path)
                self._digest = digest_of(self._hashes)
            return self._digest

    def publish(self) -> Path:
        """Make the sealed files the blob of their digest and return its directory.

        From here until `done` (or the end of the context) no garbage collection runs in any process: that is the
        time to commit the row that refers to the digest. A blob that is held already is kept. Raises
        AdapterRefused (storage_full, storage_failed); RuntimeError before `seal`.
        """
        with self._in_use(), storing():
            return self._publish(self._path, self.digest)

    def done(self) -> None:
        """What refers to the digest is committed, or never will be: garbage may be collected again."""
        self._done()

    def close(self) -> None:
        """Let go of open files, once no thread writes; the store calls it at the end of the context."""
        with self._lock:
            self._closed = True
            self._close_files()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Files stay open while a thread is in here. Raises RuntimeError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the context of the incoming adapter has ended: nothing more can be written")
            yield

    def _close_files(self) -> None:
        for file in self._open.values():
            os.close(file.fd)
        self._open.clear()

    def _end(self) -> None:
        """Bring the file being written to the disk, read-only."""
        for name, file in self._open.items():
            if file.expected not in (None, file.size):
                raise AdapterRefused(
                    "incomplete", f"{name} has {file.size} bytes and {file.expected} were announced; send it again"
                )
            with storing():
                os.fchmod(file.fd, 0o444)
                os.fsync(file.fd)
            self._hashes[name] = file.hash.hexdigest()
        self._close_files()


def _read_into(name: str, stream: BinaryIO, view: memoryview) -> int:
    try:
        return stream.readinto(view)  # type: ignore[attr-defined, no-any-return]
    except OSError as error:
        raise AdapterRefused(
            "unreadable", f"{name} can't be read: {error.strerror}; check the disk it is on and its permissions"
        ) from error


def _too_large(name: str, limit: int) -> AdapterRefused:
    return AdapterRefused("too_large", f"{name} is over the limit of {limit} bytes")


@contextmanager
def storing() -> Iterator[None]:
    """What goes wrong in the data folder, as a refusal: storage_full or storage_failed."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise AdapterRefused(
                "storage_full", f"the adapter can't be stored in the data folder: {error.strerror}; free some space"
            ) from error
        raise AdapterRefused(
            "storage_failed",
            f"the adapter can't be stored in the data folder: {error.strerror}; check the folder and its disk",
        ) from error


def sync_directory(directory: Path) -> None:
    """Make the entries of a directory outlive a power cut. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
