"""The adapters this server serves: registry, blobs and folder wired to the engine, and names for its digests.

The one owner of that wiring. A version is loaded into the engine before its name points to it, and leaves the
engine before its files are deleted. Knows no HTTP and no text.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from livery.engine.base import AdapterLoadFailed, AdapterRef, Engine, EngineDead, EngineError
from livery.refusals import (
    AdapterExists,
    AdapterNotFound,
    AdapterNotReady,
    AdapterPathNotFound,
    AdapterUnusable,
    InvalidParameter,
    UnknownModel,
)
from livery_adapters.base_model import BaseModel
from livery_adapters.ingest import Ingest
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import AdapterRecord, AdapterRegistry, AdapterVersion, Lease, UnknownAdapter
from livery_adapters.sources import FolderSource
from livery_adapters.store import BlobStore

__all__ = ["AdapterFolders", "DataFolderInUse", "ServedAdapters"]

log = logging.getLogger("livery.adapters")

# Nobody awaits the watcher: whatever ended it would end it unseen.
WATCH_ERRORS = (OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, EngineError, AdapterRefused)
WATCH_AGAIN_S = 2.0


class DataFolderInUse(Exception):
    """Another server keeps its adapters in the data folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"data folder {folder} is in use by another server; choose another with --data DIR")


@dataclass(frozen=True, slots=True)
class AdapterFolders:
    """`root`: the operator's adapters, None for none. `data`: where this server keeps its own copies."""

    root: Path | None
    data: Path
    poll: bool = False  # look instead of waiting for change events


class ServedAdapters:
    """Adapters by name for one engine. Use from one event loop."""

    def __init__(self, engine: Engine, base: BaseModel, folders: AdapterFolders, limits: Limits) -> None:
        """Raises DataFolderInUse, and NotADirectoryError when the adapter folder isn't there."""
        self._engine = engine
        self._root = folders.root.resolve() if folders.root is not None else None
        self._lock = _lock(folders.data)
        self._store = BlobStore(folders.data / "adapters", limits)
        self._registry = AdapterRegistry(on_idle=self._idle, reserved={base.name})
        self._ingest = Ingest(
            self._registry,
            self._store,
            base,
            limits,
            load=self._load,
            unload=self._unload,
            load_errors=(AdapterLoadFailed,),
        )
        self._folder = (
            FolderSource(self._root, self._ingest, self._registry, force_polling=folders.poll) if self._root else None
        )
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take what the folder holds, drop what an earlier run left, and follow the folder from then on."""
        if self._folder is not None:
            await self._folder.scan()
        await self._ingest.prune()
        if self._folder is not None:
            self._watching = asyncio.create_task(self._watch(self._folder))

    async def stop(self) -> None:
        """Stop following the folder; what is served stays served."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        os.close(self._lock)

    # -- requests --------------------------------------------------------------------------------------

    def lease(self, name: str) -> Lease:
        """Hold the version `name` stands for. Raises UnknownModel, AdapterUnusable or AdapterNotReady."""
        try:
            return self._registry.lease(name)
        except UnknownAdapter as unknown:
            record = self._known(name)
            if record is None or record.state in ("active", "draining"):
                raise UnknownModel(name, unknown.reason) from unknown
            if record.state == "loading":
                raise AdapterNotReady(name) from unknown
            raise AdapterUnusable(name, record.error or record.state) from unknown

    def version(self, name: str) -> AdapterVersion:
        """The version a request for `name` would get now, pins included. Raises UnknownModel."""
        try:
            with self.lease(name) as lease:
                return lease.version
        except (AdapterNotReady, AdapterUnusable):
            raise UnknownModel(name) from None

    # -- looking ---------------------------------------------------------------------------------------

    def records(self) -> list[AdapterRecord]:
        """Every adapter known by name, whatever its state."""
        return self._registry.records()

    def record(self, name: str) -> AdapterRecord:
        """Raises UnknownModel."""
        record = self._known(name)
        if record is None:
            raise UnknownModel(name)
        return record

    def active(self) -> list[tuple[str, AdapterVersion]]:
        """Names that take requests and the version each stands for."""
        return [(record.name, record.version) for record in self.records() if record.version is not None]

    def names_of(self, digests: Iterable[str]) -> tuple[str, ...]:
        """The names that stand for some versions; versions that no name stands for any more are left out."""
        wanted = set(digests)
        return tuple(name for name, version in self.active() if version.digest in wanted)

    # -- management ------------------------------------------------------------------------------------

    async def load(self, name: str, path: str, *, in_place: bool) -> AdapterVersion:
        """Serve the directory `path`, which must be below the adapter folder, as `name`.

        Raises AdapterExists (unless `in_place`), AdapterPathNotFound, InvalidParameter or AdapterRefused.
        """
        directory = self._below_root(path)
        record = self._known(name)
        if not in_place and record is not None and record.version is not None:
            raise AdapterExists(name)
        if not directory.is_dir():
            raise AdapterPathNotFound(name, path)
        return await self._ingest.take(name, directory, "api")

    def unload(self, name: str) -> None:
        """Take no more requests for `name`; those under way finish. Raises AdapterNotFound."""
        if not self._registry.retire(name):
            raise AdapterNotFound(name)

    async def settle(self) -> None:
        """Wait until versions that nobody uses any more have left the engine and the disk."""
        await self._ingest.settle()

    def _below_root(self, path: str) -> Path:
        """Where `path` leads once links are followed. Raises InvalidParameter when that is outside."""
        if self._root is None:
            raise InvalidParameter("This server was started without an adapter folder (--adapters).", "lora_path")
        try:
            resolved = (self._root / path).resolve()
            resolved.is_dir()  # raises what resolving lets pass
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
            raise InvalidParameter("lora_path is not a usable path.", "lora_path") from None
        if resolved == self._root or not resolved.is_relative_to(self._root):
            raise InvalidParameter(
                "lora_path must be a directory below the adapter folder (--adapters), links followed.",
                "lora_path",
            )
        return resolved

    def _known(self, name: str) -> AdapterRecord | None:
        try:
            return self._registry.get(name)
        except UnknownAdapter:
            return None

    # -- wiring ----------------------------------------------------------------------------------------

    async def _load(self, version: AdapterVersion) -> None:
        await self._engine.load_adapter(AdapterRef.of(version.digest, str(version.path)))

    async def _unload(self, version: AdapterVersion) -> None:
        await self._engine.unload_adapter(version.digest)

    def _idle(self, version: AdapterVersion) -> None:
        self._ingest.discard_soon(version)

    async def _watch(self, folder: FolderSource) -> None:
        """Follow the folder while the engine lives: one adapter's surprise must not cost the others."""
        while True:
            try:
                await folder.watch()
            except EngineDead as dead:
                log.error("the adapter folder is no longer followed: %s", dead)
                return
            except WATCH_ERRORS as error:
                log.error("following the adapter folder failed; it is looked at again", exc_info=error)
                await asyncio.sleep(WATCH_AGAIN_S)


def _lock(folder: Path) -> int:
    """Hold the data folder for this process; the lock ends with it. Raises DataFolderInUse."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise DataFolderInUse(folder) from None
    return handle
