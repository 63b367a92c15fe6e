"""An adapter on its way into a blob store: its two files are written, hashed and measured in one pass.

What lies beside them (`BESIDE_LIMITS`) is small, held in memory, and no part of the blob or its digest.

`BlobStore.incoming()` makes one and publishes it; a source (upload, hub, object store, directory) fills it. Every
byte is hashed and counted as it is written, so that nothing is read a second time to learn the digest, and nothing
over a limit is ever on disk in full. Hashing takes longest, so it runs beside the writing, and bringing the files to
the disk beside both and beside whatever is checked meanwhile. Any thread may call it, one at a time; its context may
end in another one: that waits for the call under way, and the thread's next call fails.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from livery_adapters.beside import BESIDE_LIMITS
from livery_adapters.layout import digest_of
from livery_adapters.piece_hash import PieceHash
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.tensor_file import CHUNK, CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME, open_regular
from livery_adapters.weightless import NO_TENSORS, says_none

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(slots=True)
class _File:
    """One file, open until it is on the disk: `expected` is the announced length in bytes, None when nobody said."""

    fd: int
    expected: int | None
    size: int = 0
    hash: PieceHash = field(default_factory=PieceHash)


class Incoming:
    """The two files of one adapter, as far as they have arrived, in a directory nobody else looks into.

    begin/write (or read, or copy) -> end -> look at `path` -> seal (and sync, beside it) -> publish -> done. Files
    arrive one after the other in any order. The context of `BlobStore.incoming` removes whatever was not published.
    """

    def __init__(
        self, path: Path, limits: Limits, publish: Callable[[Path, str], Path], done: Callable[[], None]
    ) -> None:
        """For the store: `path` is an empty directory, `publish(path, digest)` makes it a blob, `done` follows that."""
        self._path = path
        self._limits = limits
        self._publish = publish
        self._done = done
        self._files: dict[str, _File] = {}  # all that were begun; only the last may still grow
        self._beside: dict[str, bytearray] = {}
        self._growing: str | None = None
        self._ended = False
        self._synced = False
        self._digest: str | None = None
        self._lock = threading.RLock()  # a file must not be closed under a thread that writes: its number is reused
        self._hashing = threading.Lock()  # of waiting for digests, during which files can be synced
        self._syncing = threading.Lock()  # of waiting for the disk, during which files can be looked at and hashed
        self._closed = False

    @property
    def path(self) -> Path:
        """The directory of the files. After `end` they are complete and read-only."""
        return self._path

    @property
    def digest(self) -> str:
        """The adapter's digest. Raises RuntimeError before `seal`."""
        if self._digest is None:
            raise RuntimeError("the digest is known once the incoming adapter is sealed")
        return self._digest

    @property
    def beside(self) -> dict[str, bytes]:
        """What came beside the two files, by name; whole after `end`."""
        return {name: bytes(data) for name, data in self._beside.items()}

    def limit(self, name: str) -> int:
        """The most bytes that the file may have. Raises AdapterRefused (unexpected_file)."""
        if name in BESIDE_LIMITS:
            return BESIDE_LIMITS[name]
        if name not in FILE_NAMES:
            raise AdapterRefused(
                "unexpected_file",
                f"{name[:80]!r} is no file of an adapter; send {' and '.join(FILE_NAMES)}, beside them "
                f"{', '.join(BESIDE_LIMITS)} if there is one, and nothing else",
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
        if self._ended:
            raise RuntimeError("a sealed adapter takes no more files")
        if name in self._files or name in self._beside:
            raise AdapterRefused("duplicate_file", f"{name} was sent twice; send each file once")
        with self._in_use():
            self._end_file()
            if name in BESIDE_LIMITS:
                self._beside[name], self._growing = bytearray(), name
                return
            with storing():
                fd = os.open(self._path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._files[name], self._growing = _File(fd, size), name

    def write(self, name: str, chunk: bytes | bytearray | memoryview) -> None:
        """Append to a file, beginning it when it is new. Raises AdapterRefused as `begin` does."""
        with self._in_use():
            if name != self._growing:
                self.begin(name)
            if name in self._beside:
                self._beside[name] += chunk
                if len(self._beside[name]) > self.limit(name):
                    raise _too_large(name, self.limit(name))
                return
            file = self._files[name]
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
        while piece := read_piece(name, stream):
            self.write(name, piece)

    def copy(self, directory: Path) -> None:
        """Take both files of a directory; neither it nor they may be links. Raises AdapterRefused."""
        for name in FILE_NAMES:
            with open_regular(directory, name) as stream:
                self.read(name, stream)

    def end(self) -> None:
        """No more will come: from now on the files can be looked at. Who has no weights gets a file that says so.

        Raises AdapterRefused (missing_config, missing_weights, incomplete, storage_full, storage_failed).
        """
        with self._in_use():
            self._end_file()
            if self._files.keys() == {CONFIG_NAME} and says_none((self._path / CONFIG_NAME).read_bytes()):
                self.write(WEIGHTS_NAME, NO_TENSORS)
                self._end_file()
            for name in FILE_NAMES:
                if name not in self._files:
                    code = "missing_config" if name == CONFIG_NAME else "missing_weights"
                    raise AdapterRefused(code, f"{name} did not arrive; send {' and '.join(FILE_NAMES)}")
            self._ended = True

    def seal(self) -> str:
        """End the files and return the adapter's digest, once all of it is hashed. Raises AdapterRefused as `end`."""
        self.end()
        with self._hashing:
            if self._digest is None:
                self._digest = digest_of({name: file.hash.hexdigest() for name, file in self._files.items()})
            return self._digest

    def sync(self) -> None:
        """End the files and bring them to the disk for good, which `publish` does unless it was done before.

        May run beside `seal` and beside whoever reads the files. Raises AdapterRefused as `end`.
        """
        self.end()
        with self._syncing:  # `close` waits for it, so the files stay open
            with self._in_use():
                fds = [] if self._synced else [file.fd for file in self._files.values()]
            if fds:
                with storing():
                    for fd in fds:
                        os.fsync(fd)
                    sync_directory(self._path)
                self._synced = True

    def publish(self) -> Path:
        """Make the sealed files the blob of their digest and return its directory.

        From here until `done` (or the end of the context) no garbage collection runs in any process: that is the
        time to commit the row that refers to the digest. A blob that is held already is kept. Raises
        AdapterRefused (storage_full, storage_failed); RuntimeError before `seal`.
        """
        digest = self.digest
        self.sync()
        with self._in_use(), storing():
            return self._publish(self._path, digest)

    def done(self) -> None:
        """What refers to the digest is committed, or never will be: garbage may be collected again."""
        self._done()

    def close(self) -> None:
        """Let go of open files, once no thread uses them; the store calls it at the end of the context."""
        with self._hashing, self._syncing, self._lock:
            self._closed = True
            for file in self._files.values():
                file.hash.close()
                os.close(file.fd)
            self._files.clear()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Files stay open while a thread is in here. Raises RuntimeError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the context of the incoming adapter has ended: nothing more can be written")
            yield

    def _end_file(self) -> None:
        """Nothing is added to the file being written any more; it is read-only."""
        if self._growing is None:
            return
        name, self._growing = self._growing, None
        if name in self._beside:
            return
        file = self._files[name]
        if file.expected not in (None, file.size):
            raise AdapterRefused(
                "incomplete", f"{name} has {file.size} bytes and {file.expected} were announced; send it again"
            )
        with storing():
            os.fchmod(file.fd, 0o444)


def read_piece(name: str, stream: BinaryIO) -> bytes:
    """The next piece of a source's file, empty at its end. Raises AdapterRefused (unreadable)."""
    try:
        return stream.read(CHUNK)
    except OSError as error:
        raise AdapterRefused(
            "unreadable", f"{name} can't be read: {error.strerror}; check the disk it is on and its permissions"
        ) from error


def _too_large(name: str, limit: int) -> AdapterRefused:
    remedy = "; raise --max-adapter-bytes or lower the adapter's rank" if name == WEIGHTS_NAME else ""
    return AdapterRefused("too_large", f"{name} is over the limit of {limit} bytes{remedy}")


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
