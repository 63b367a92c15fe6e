"""An adapter folder and everything behind it, with an engine that only remembers what it was told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from adapters.peft_made import tiny_base
from livery_adapters.ingest import CheckedAdapter, Ingest
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import DEFAULT_LIMITS
from livery_adapters.registry import AdapterRegistry, AdapterVersion
from livery_adapters.sources import FolderSource
from livery_adapters.store import BlobStore


class CannotApply(Exception):
    """What this file's engine says of a version it can't apply."""


class WatchedIngest(Ingest):
    """Notes which folders are read; `meanwhile` runs after each reading, before the quiet moment."""

    read: list[str]
    meanwhile: Callable[[], object] | None = None

    async def check(self, directory: Path) -> CheckedAdapter:
        self.read.append(directory.name)
        checked = await super().check(directory)
        if self.meanwhile:
            self.meanwhile()
        return checked


class Scene:
    """A folder and everything behind it; the engine only remembers what it was told to load."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "adapters"
        self.root.mkdir()
        self.loaded: list[str] = []
        self.changed = asyncio.Event()
        self.unable: set[str] = set()
        self.while_loading: Callable[[AdapterVersion], object] = lambda _: None
        self.held: dict[str, asyncio.Event] = {}  # digests whose load waits for the event
        self.store = BlobStore(folder / "data")
        self.registry = AdapterRegistry(on_idle=lambda version: self.ingest.discard_soon(version))
        self.ingest = WatchedIngest(
            self.registry,
            self.store,
            tiny_base(),
            DEFAULT_LIMITS,
            load=self._load,
            unload=self._unload,
            load_errors=(CannotApply,),
        )
        self.ingest.read = []
        self.folder = FolderSource(self.root, self.ingest, self.registry, quiet_seconds=0)

    async def _load(self, version: AdapterVersion) -> None:
        self.while_loading(version)
        if version.digest in self.held:
            await self.held[version.digest].wait()
        if version.digest in self.unable:
            raise CannotApply("no room for it")
        self.loaded.append(version.digest)
        self.changed.set()

    async def _unload(self, version: AdapterVersion) -> None:
        self.loaded.remove(version.digest)
        self.changed.set()

    def put(self, adapter: Path, name: str) -> Path:
        """Copy an adapter in place of what the folder has under that name."""
        shutil.copytree(adapter, self.root / name, dirs_exist_ok=True)
        return self.root / name

    def standing(self, name: str) -> tuple[str, str | None, str | None]:
        """State, digest served and error code of a name."""
        record = self.registry.get(name)
        return record.state, record.version.digest if record.version else None, record.error_code

    def names(self) -> list[str]:
        return [record.name for record in self.registry.records()]


def digest_in(folder: Path) -> str:
    return read_manifest(folder).digest
