"""The folder that holds everything a server keeps: where things are in it, whose it is, and for which base model.

    folder = DataFolder(Path("data"))
    folder.make()
    with folder.serving(KnownBase(name, digest, model, shapes)):    # several servers may share it, all of one base
        handle = folder.try_to_follow()                             # one of them follows the adapter folder

Commands read what the server wrote, so that they can check adapters for its base without loading it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from livery.locks import locked
from livery_adapters.base_model import BaseModel, BaseShapes

REMEDY = "choose another with --data DIR"
MAX_BASE_BYTES = 64 << 20
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class DataFolderUnusable(Exception):
    """The data folder can't be used; the message names it and the remedy."""


class KnownBase(msgspec.Struct, frozen=True):
    """The base model that a folder's adapters are for: its public name, its digest and what adapters may change.

    `model` is what the server was started with (--model). `registry` says, without any password, where the
    registry is when it isn't in the folder; `blob_store` is the object store in which servers share adapter files.
    """

    name: str
    digest: str
    model: str
    shapes: BaseShapes
    registry: str = ""
    blob_store: str = ""

    def as_base(self) -> BaseModel:
        return BaseModel(self.name, self.digest, self.shapes)


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Paths below one root. Nothing is created before `make`."""

    root: Path

    @property
    def database(self) -> Path:
        """The registry, unless a URL names another."""
        return self.root / "livery.db"

    @property
    def adapters(self) -> Path:
        """Adapter files by content; see livery_adapters.store."""
        return self.root / "adapters"

    @property
    def base_file(self) -> Path:
        return self.root / "base.json"

    def registry_url(self) -> str:
        """The registry of this folder as SQLAlchemy names it."""
        return f"sqlite:///{self.database.absolute()}"

    @property
    def tenants(self) -> Path:
        """Tenants, keys and usage, unless a URL names another place for the registry, where they are too.

        Apart from the registry: who writes here often never waits for who writes there.
        """
        return self.root / "tenants.db"

    def tenants_url(self, registry: str | None) -> str:
        """Where the tenants are, as SQLAlchemy names it; `registry` is the URL that was given for it, if one was."""
        return registry or f"sqlite:///{self.tenants.absolute()}"

    def make(self) -> None:
        """Create the folder where it isn't there yet. Raises DataFolderUnusable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise DataFolderUnusable(f"data folder {self.root} can't be used: {error.strerror}; {REMEDY}") from None

    def try_to_follow(self) -> int | None:
        """The right to follow the adapter folder, for one process at a time: a handle to close, or None.

        It ends with the process at the latest. Raises DataFolderUnusable.
        """
        return locked(self._lock_file("folder.lock"))

    def follower(self) -> str:
        """Who follows an adapter folder from here, to a registry that others share: a UUID, made once.

        Raises DataFolderUnusable.
        """
        handle = self._lock_file("follower")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # of several servers that start one makes it
            found = os.pread(handle, 64, 0).decode(errors="replace")
            if not _UUID.fullmatch(found):
                found = str(uuid.uuid4())
                os.ftruncate(handle, 0)
                os.pwrite(handle, found.encode(), 0)
                os.fsync(handle)
            return found
        except OSError as error:
            raise DataFolderUnusable(f"data folder {self.root} can't be used: {error.strerror}; {REMEDY}") from None
        finally:
            os.close(handle)

    @contextmanager
    def serving(self, base: KnownBase) -> Iterator[None]:
        """Around a server of this base, which the folder belongs to meanwhile; it is written down.

        Raises DataFolderUnusable while a server of another base runs on the folder.
        """
        running = self._lock_file("base.lock")
        try:
            starting = self._lock_file("base.starting")
            try:
                fcntl.flock(starting, fcntl.LOCK_EX)  # one server at a time decides
                self._take(running, base)
            finally:
                os.close(starting)
            yield
        finally:
            os.close(running)

    def _take(self, running: int, base: KnownBase) -> None:
        """Every server shares the lock, whose file names their base: nobody else has it once all have ended."""
        mine = f"{base.digest} {base.name}".encode()
        found = os.pread(running, 4096, 0)
        if found != mine:
            try:
                fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not found.startswith(base.digest.encode()):
                    digest, _, name = found.decode(errors="replace").partition(" ")
                    raise DataFolderUnusable(
                        f"data folder {self.root} is in use by a server of another base model, {name} ({digest[:12]}), "
                        f"and this one is {base.name} ({base.digest[:12]}); stop that server, or {REMEDY}"
                    ) from None
            os.pwrite(running, mine, 0)
            os.ftruncate(running, len(mine))
        self.write_base(base)
        fcntl.flock(running, fcntl.LOCK_SH)

    def _lock_file(self, name: str) -> int:
        """A handle to lock, to be closed. Raises DataFolderUnusable."""
        try:
            return os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataFolderUnusable(f"data folder {self.root} can't be used: {error.strerror}; {REMEDY}") from None

    def base(self) -> KnownBase | None:
        """What the last server here served; None when none ever did. Raises DataFolderUnusable."""
        try:
            with self.base_file.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BASE_BYTES), type=KnownBase)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataFolderUnusable(
                f"{self.base_file} can't be read ({error}); start the server once, which writes it again, "
                "or name the base with --model"
            ) from None

    def check_here(self, what: str, file: Path, *, creates: bool = False) -> None:
        """For who was given no URL of a registry: is `what` ("usage") in this folder, in `file`, or may it be made?

        Raises DataFolderUnusable where it is at a URL, and where there is none and it may not.
        """
        known = self.base()
        if known is not None and known.registry:
            raise DataFolderUnusable(
                f"the registry of {self.root}, with its {what}, is not in it but at {known.registry}; give its URL "
                "with --registry"
            )
        if not creates and not file.exists():
            raise DataFolderUnusable(
                f"{self.root} holds no {what} ({file.name}); give the folder that `livery serve` has with --data DIR, "
                "or --registry URL, or ask a server with --url URL"
            )

    def write_base(self, base: KnownBase) -> None:
        """Replace what is written there, in one step. Raises DataFolderUnusable."""
        try:
            handle, staged = tempfile.mkstemp(dir=self.root, prefix=".base-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(base))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(staged, self.base_file)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(staged)
        except OSError as error:
            raise DataFolderUnusable(f"{self.base_file} can't be written: {error.strerror}; {REMEDY}") from None
