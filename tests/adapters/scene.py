"""An adapter folder and everything behind it but a model: what would prove adapters only remembers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from adapters.peft_made import tiny_base
from livery_adapters.effect import AdapterEffect, ModuleEffect
from livery_adapters.library import AdapterLibrary, Fill, from_directory
from livery_adapters.manifest import read_manifest
from livery_adapters.prover import Candidate
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused
from livery_adapters.registry import Registry
from livery_adapters.sources import FolderSource
from livery_adapters.store import BlobStore


class RememberingProver:
    """Proves everything but what it is told to refuse; a held one waits for its event."""

    def __init__(self) -> None:
        self.proven: list[str] = []
        self.forgotten: list[str] = []
        self.unable: set[str] = set()
        self.held: dict[str, asyncio.Event] = {}
        self.while_proving: Callable[[Candidate], object] = lambda _: None
        self.effect: AdapterEffect | None = AdapterEffect({"model.a": ModuleEffect(4, 0.5)}, 100)

    async def prove(self, candidate: Candidate) -> AdapterEffect | None:
        self.while_proving(candidate)
        assert read_manifest(candidate.path).digest == candidate.weights, "proven from other files than those checked"
        if candidate.digest in self.held:
            await self.held[candidate.digest].wait()
        if candidate.digest in self.unable:
            raise AdapterRefused("activation_failed", "no room for it")
        self.proven.append(candidate.digest)
        return self.effect

    async def stored(self, candidate: Candidate) -> None:
        pass

    async def forget(self, digest: str) -> None:
        self.forgotten.append(digest)


class Scene:
    """A folder and everything behind it."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        """`url` of a registry that others have too, else one of its own."""
        self.root = folder / "adapters"
        self.root.mkdir(parents=True)
        self.follower = str(folder)
        self.changed = asyncio.Event()
        self.changes: list[str] = []
        self.prover = RememberingProver()
        self.store = BlobStore(folder / "data")
        self.registry = Registry.open(url or folder / "livery.db", frozenset({"tiny-llama"}))
        self.library = AdapterLibrary(self.registry, self.store, tiny_base(), DEFAULT_LIMITS, self.prover)
        self.folder = self.source(quiet_seconds=0)

    def source(self, *, quiet_seconds: float = 0, retry_seconds: float = 2.0) -> FolderSource:
        """Another follower of the folder, as after a restart."""
        return FolderSource(
            self.root,
            self.library,
            self.changing,
            follower=self.follower,
            quiet_seconds=quiet_seconds,
            retry_seconds=retry_seconds,
        )

    @asynccontextmanager
    async def changing(self, name: str, _owner: str = "default") -> AsyncIterator[None]:
        yield
        self.changes.append(name)
        self.changed.set()

    def put(self, adapter: Path, name: str) -> Path:
        """Copy an adapter in place of what the folder has under that name."""
        shutil.copytree(adapter, self.root / name, dirs_exist_ok=True)
        return self.root / name

    def standing(self, name: str) -> tuple[str, str | None, str | None]:
        """State, digest served and error code of a name."""
        record = self.registry.get(name)
        return record.state, record.active.facts.digest if record.active else None, record.error_code

    def names(self) -> list[str]:
        return [record.name for record in self.registry.page().records]

    async def kept(self) -> list[str]:
        """What is stored once garbage is gone."""
        await self.library.collect_garbage()
        return self.store.digests()


def digest_in(folder: Path) -> str:
    return read_manifest(folder).digest


def out_of(folder: Path) -> Fill:
    """Copies what the folder holds."""
    return from_directory(folder, [folder.parent])
