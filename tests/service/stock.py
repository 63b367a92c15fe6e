"""Served adapters over a fake engine, for the tests of what becomes of names and versions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from api.live_server import BASE, MODULES
from api.peft_files import make_adapter
from livery.engine.fake import FakeEngine
from livery.lease import Caller, Lease
from livery.served import ServedAdapters
from livery_adapters.base_model import BaseModel
from livery_adapters.library import Intake, from_directory
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import Limits
from livery_adapters.registry import Registry
from livery_adapters.store import BlobStore

API = Intake("api")


@dataclass
class Stock:
    """Served adapters over a fake engine, and a hand to change them."""

    folder: Path
    engine: FakeEngine
    adapters: ServedAdapters
    registry: Registry
    store: BlobStore
    base: BaseModel

    def made(self, seed: int) -> Path:
        path = self.folder / f"made-{seed}"
        return path if path.exists() else make_adapter(path, seed=seed)

    async def add(self, name: str, seed: int, intake: Intake = API) -> str:
        path = self.made(seed)
        async with self.adapters.changing(name):
            await self.adapters.library.add(name, from_directory(path, [path]), intake)
        return read_manifest(path).digest

    async def lease(self, name: str, caller: Caller | None = None) -> Lease:
        lease = await self.adapters.lease(name, caller or Caller())
        assert lease is not None
        return lease

    def elsewhere(self) -> Registry:
        """The registry as another process has it open."""
        return Registry.open(self.folder / "livery.db")


@asynccontextmanager
async def stocked(folder: Path) -> AsyncIterator[Stock]:
    """A stock whose files are in a folder."""
    engine = FakeEngine(modules=MODULES)
    info = await engine.start()
    base = BaseModel(BASE, info.base_digest, info.shapes)
    registry = Registry.open(folder / "livery.db", frozenset({BASE}))
    store = BlobStore(folder / "blobs")
    adapters = ServedAdapters(engine, info, base, registry, store, Limits())
    await adapters.start()
    yield Stock(folder, engine, adapters, registry, store, base)
    await adapters.stop()
    registry.close()
