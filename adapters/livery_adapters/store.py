"""Adapter files by content: a directory that holds each version once, under its digest, and never changes it.

    store = BlobStore(Path("data"))
    with store.incoming() as incoming:
        incoming.copy(Path("adapters/pirate"))    # or begin/write, chunk by chunk
        digest = incoming.seal()                  # complete; incoming.path can be checked, nobody else sees it
        incoming.publish()                        # on disk for good, and a blob
        ...                                       # commit what refers to the digest
    store.path(digest)                            # a directory to read from until it is garbage
    hold = store.hold(digest)                     # which it isn't, in any process, before hold.release()
    store.bring(digest)                           # where servers share an object store: a copy of what one put there

    store.collect_garbage(keep=registry_digests, grace_s=600)

Knows no names, no manifests and no engine. Several processes may use one root. Every call blocks on the disk: use
a worker thread. Calls from several threads may overlap.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from livery_adapters.blob_owner import BlobOwner
from livery_adapters.blobs import Blobs
from livery_adapters.incoming import Incoming, storing, sync_directory
from livery_adapters.refusal import DEFAULT_LIMITS, TAKEN_IN, AdapterRefused, Limits
from livery_adapters.tensor_file import CHUNK, FILE_NAMES, open_regular

if TYPE_CHECKING:
    from livery_adapters.shared_blobs import SharedBlobs

__all__ = ["BlobStore", "Hold", "Incoming", "StoreBusy"]

_FILES = "files"
_LOCK = "lock"
_POLL_S = 0.02


class StoreBusy(Exception):
    """Somebody was publishing all the time; collect the garbage later."""


class Hold:
    """A blob that no process deletes until `release`, or until this process ends."""

    def __init__(self, fd: int) -> None:
        """For the store: `fd` is the blob's open directory, locked shared."""
        self._fd: int | None = fd

    def release(self) -> None:
        """The blob may go. Does nothing the second time."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class BlobStore(Blobs):
    """The only writer below `root`.

    A blob is `root/sha256/ab/<64 hex>/` with the two files, read-only. What is on its way in is
    `root/incoming/<random>/files/` beside a `lock` that its process holds, so that what a killed process left is
    told from what a slow one is still writing. `root/lock` is held shared from publishing a blob until whatever
    refers to it is committed, and exclusively while garbage is collected. A blob's own directory is locked shared by
    whoever reads it for longer (`hold`), and exclusively for its deletion.
    """

    def __init__(self, root: Path, limits: Limits = DEFAULT_LIMITS, shared: SharedBlobs | None = None) -> None:
        """`shared`: what is published is kept there too, and what others published comes from there (`bring`)."""
        super().__init__(root)
        self.shared = shared
        self._owner: BlobOwner | None = None
        self._limits = limits
        self._incoming = root / "incoming"  # on the same file system, so that a rename publishes
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(exist_ok=True)
        sync_directory(root)
        with contextlib.suppress(StoreBusy):
            self._sweep(timeout_s=0)

    def belong_to(self, identity: Callable[[], str], listed: Callable[[], Collection[str]]) -> None:
        """Publish and delete for one registry only; `listed` are the digests its rows refer to. See `BlobOwner`.

        Both are asked later, and may block.
        """
        self._owner = BlobOwner(self.root, identity, listed, self.digests)
        if self.shared is not None:
            self.shared.belong_to(identity)

    def check_owner(self) -> None:
        """Raises AdapterRefused (blobs_of_another) where the blobs here are another registry's; OSError."""
        if self._owner is not None:
            self._owner.check()

    def claim(self) -> None:
        """Have the folder be its registry's, as publishing does. Raises AdapterRefused (blobs_of_another), OSError."""
        if self._owner is not None:
            self._owner.claim(_locked(self.root / _LOCK, fcntl.LOCK_EX))

    def check_shared(self, theirs: str | None) -> None:
        """Raises AdapterRefused (blobs_elsewhere) where whoever looks in the object store `theirs` would miss it."""
        mine = None if self.shared is None else str(self.shared)
        if theirs not in (None, mine):
            raise AdapterRefused(
                "blobs_elsewhere",
                f"servers of this registry share adapter files in {theirs}, and what is taken in here would be in "
                f"{mine or 'the data folder'} alone: start with --blob-store {theirs}",
            )

    # -- taking in -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Room for one adapter; what isn't published by the end of the context is gone.

        The row that refers to the digest must be committed inside the context, after `publish` and before `done`:
        until then garbage collection waits, in this and every other process; it does not wait for downloads, which
        come before `publish`. Raises AdapterRefused (storage_full, storage_failed, and of `publish` blobs_unavailable,
        blobs_of_another).
        """
        with self._room(self.shared, self._limits) as incoming:
            yield incoming

    @contextlib.contextmanager
    def _room(self, shared: SharedBlobs | None, limits: Limits) -> Iterator[Incoming]:
        """See `incoming`; `shared` is where what is published is kept as well."""
        with contextlib.ExitStack() as held:
            published = held.enter_context(contextlib.ExitStack())  # holds the shared lock from publish to done

            def publish(files: Path, digest: str) -> Path:
                if shared is not None:
                    shared.keep(digest, files)
                self.claim()
                published.enter_context(_locked(self.root / _LOCK, fcntl.LOCK_SH))
                self.check_owner()  # while it was empty another registry may have taken it
                return self._publish(files, digest)

            with storing(), _locked(self.root / _LOCK, fcntl.LOCK_SH):  # no sweep sees it before it is locked
                home = self._incoming / uuid.uuid4().hex
                home.mkdir()
                held.callback(shutil.rmtree, home, ignore_errors=True)
                held.enter_context(_locked(home / _LOCK, fcntl.LOCK_EX))
                (home / _FILES).mkdir()
            incoming = Incoming(home / _FILES, limits, publish, published.close)
            held.callback(incoming.close)
            yield incoming

    def put(self, directory: Path, expected: str | None = None) -> str:
        """Copy an adapter's two files in and return their digest. Raises AdapterRefused.

        The digest is that of the bytes copied, whatever happens to `directory` meanwhile; when it is not
        the `expected` one, nothing is kept and the adapter is refused as incomplete.
        """
        with self.incoming() as incoming:
            incoming.copy(directory)
            digest = incoming.seal()
            if expected not in (None, digest):
                raise AdapterRefused(
                    "incomplete", f"the files of {directory.name!r} changed while they were read; it is tried again"
                )
            incoming.publish()
        return digest

    def bring(self, digest: str) -> bool:
        """Have a version's files here, from the shared object store where they aren't; False: nobody shares any.

        Raises AdapterRefused (blobs_unavailable, blob_missing, storage_full, storage_failed).
        """
        if self.path(digest).is_dir():
            return True
        if self.shared is None:
            return False
        with self._room(None, TAKEN_IN) as incoming:
            self.shared.bring(digest, incoming)
            incoming.publish()
        return True

    def _publish(self, files: Path, digest: str) -> Path:
        final = self.path(digest)
        final.parent.mkdir(exist_ok=True)
        if not any(final.parent.iterdir()):  # whoever made it may be about to sync it, or was killed before
            sync_directory(self._blobs)
        try:
            files.rename(final)  # a directory that is not empty is never replaced
        except OSError:
            if not final.is_dir():
                raise
            _repair(final, files)
        os.utime(final)  # young again: see collect_garbage
        sync_directory(final.parent)
        return final

    # -- looking ---------------------------------------------------------------------------------------

    def hold(self, digest: str) -> Hold:
        """Keep a version from being collected, by any process, until the hold is released.

        It is a lock of the blob's directory, so it ends with the process at the latest. Raises FileNotFoundError for
        a version that isn't held, OSError, ValueError.
        """
        directory = self.path(digest)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)  # a deletion lasts one rename
            if not os.path.samestat(os.fstat(fd), directory.stat()):
                raise FileNotFoundError(errno.ENOENT, "the adapter version was just deleted", digest)
        except BaseException:
            os.close(fd)
            raise
        return Hold(fd)

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """No garbage is collected meanwhile, by any process: for many versions before their rows are committed.

        Raises OSError.
        """
        with _locked(self.root / _LOCK, fcntl.LOCK_SH):
            yield

    # -- throwing out ----------------------------------------------------------------------------------

    def collect_garbage(
        self, keep: Collection[str] | Callable[[], Collection[str]], grace_s: float, *, timeout_s: float = 30.0
    ) -> list[str]:
        """Delete the blobs that `keep` doesn't name and what dead processes left; return the digests deleted.

        Waits until no process is between `publish` and `done`, so a callable `keep` sees every row that refers to a
        published blob; a collection gathered earlier doesn't, and then only the grace protects what was published
        since. Blobs published (also once more) within `grace_s` seconds stay, and those that somebody holds. Never
        call it inside `incoming()`: it would wait for itself. Raises StoreBusy after `timeout_s` seconds, OSError,
        AdapterRefused (blobs_of_another).
        """
        removed = []
        with self._alone(timeout_s):
            self.check_owner()
            kept = frozenset(keep() if callable(keep) else keep)
            limit = time.time() - grace_s
            for digest in self.digests():
                old = self.path(digest).stat().st_mtime <= limit
                if digest not in kept and old and self._throw_out(digest):
                    removed.append(digest)
        self._sweep(timeout_s)
        return removed

    def _throw_out(self, digest: str) -> bool:
        """Move a blob to where `_sweep` finds it. False when somebody holds it."""
        directory = self.path(digest)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            directory.rename(self._incoming / uuid.uuid4().hex)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def _sweep(self, timeout_s: float) -> None:
        """Delete what nobody is writing any more. Dead stays dead, so only finding it needs the lock."""
        with self._alone(timeout_s):
            dead = [entry for entry in self._incoming.iterdir() if not _is_held(entry / _LOCK)]
        for leftover in dead:
            shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self, timeout_s: float) -> Iterator[None]:
        """The exclusive lock; polled, because a thread waiting in flock could never be told to stop."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(_locked(self.root / _LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except BlockingIOError:
                    pass
                else:
                    yield
                    return
            if time.monotonic() >= deadline:
                raise StoreBusy("adapters were being published all the time; collect the garbage later")
            time.sleep(_POLL_S)


@contextlib.contextmanager
def _locked(file: Path, how: int) -> Iterator[None]:
    """Hold a lock of the file, made when it isn't there; it ends with the process at the latest. Raises OSError."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _is_held(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _repair(held: Path, fresh: Path) -> None:
    """Replace, one rename each, those files of a held blob whose bytes rotted or are gone, as on a failing disk."""
    for name in FILE_NAMES:
        if not _same_bytes(held, fresh, name):
            (fresh / name).rename(held / name)
            sync_directory(held)


def _same_bytes(one: Path, other: Path, name: str) -> bool:
    """Comparing costs a fraction of hashing again: what was just written is still in memory."""
    try:
        with open_regular(one, name) as left, open_regular(other, name) as right:
            while chunk := left.read(CHUNK):
                if chunk != right.read(CHUNK):
                    return False
            return not right.read(1)
    except (AdapterRefused, OSError):
        return False
