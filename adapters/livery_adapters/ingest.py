"""From a directory to a served version: check, copy, load, publish; and from an idle version back to nothing.

Used by the folder source, by the load route and by `livery adapters check`. How a service wires it:

    store = BlobStore(data_dir)
    registry = AdapterRegistry(on_idle=lambda version: ingest.discard_soon(version), reserved={base.name})
    ingest = Ingest(registry, store, base, limits, load=load, unload=unload, load_errors=(AdapterLoadFailed,))
    folder = FolderSource(adapters_dir, ingest, registry)
    await folder.scan()                                   # what is there at start
    watching = asyncio.create_task(folder.watch())
    ...
    version = await ingest.take("pirate", directory, source="api")     # AdapterRefused says why not

`load(version)` makes the engine prove it can apply the version before the name points to it; `unload(version)`
makes the engine forget it before its files are deleted. Nothing is replaced until its successor is loaded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from livery_adapters.base_model import BaseModel
from livery_adapters.coverage import CoverageReport, check_against
from livery_adapters.finite import check_finite
from livery_adapters.manifest import AdapterManifest, read_manifest
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import AdapterRegistry, AdapterVersion, UnknownAdapter, validate_name
from livery_adapters.store import BlobStore

logger = logging.getLogger(__name__)

Hook = Callable[[AdapterVersion], Awaitable[None]]

# Somebody unloaded the name meanwhile: what they asked for, and nothing wrong with the adapter.
WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """A directory that passed every check that needs no engine."""

    manifest: AdapterManifest
    coverage: CoverageReport


def check_directory(directory: Path, base: BaseModel, limits: Limits) -> CheckedAdapter:
    """Read a directory and check it against the base, weights included. Blocks. Raises AdapterRefused."""
    try:
        manifest = read_manifest(directory, limits)
        coverage = check_against(manifest, base, limits)
        check_finite(directory, manifest)
    except OSError as error:
        raise AdapterRefused("unreadable", f"{directory.name!r} can't be read: {error.strerror}") from error
    return CheckedAdapter(manifest, coverage)


def _turn(locks: WeakValueDictionary[str, asyncio.Lock], key: str) -> asyncio.Lock:
    return locks.setdefault(key, asyncio.Lock())


async def _nothing(_version: AdapterVersion) -> None:
    """The hook of a caller without an engine."""


class Ingest:
    """Takes versions in and throws idle ones out, so that neither meets the other half-done.

    A name takes one version after the other, and one version is copied, loaded and dropped by one at a time: who
    holds a name may wait for a version, never the other way round. Different adapters don't wait for each other.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        store: BlobStore,
        base: BaseModel,
        limits: Limits,
        *,
        load: Hook = _nothing,
        unload: Hook = _nothing,
        load_errors: tuple[type[Exception], ...] = (),
    ) -> None:
        """`load_errors` are what `load` raises for a version that can't be applied; others pass through."""
        self._registry = registry
        self._store = store
        self._base = base
        self._limits = limits
        self._load = load
        self._unload = unload
        self._load_errors = load_errors
        # Locks live as long as somebody holds or awaits them.
        self._names: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._digests: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._discards: set[asyncio.Task[None]] = set()

    async def check(self, directory: Path) -> CheckedAdapter:
        """`check_directory` in a worker thread. Raises AdapterRefused."""
        return await asyncio.to_thread(check_directory, directory, self._base, self._limits)

    async def take(
        self, name: str, directory: Path, source: str, *, checked: CheckedAdapter | None = None
    ) -> AdapterVersion:
        """Make the directory's contents the active version of `name` and return it.

        `checked` is an earlier result for the same directory; if the files changed since, the adapter is
        refused as incomplete. Raises AdapterRefused, and then what was served before still is. The caller
        decides whether a failure is recorded (`registry.fail`).
        """
        validate_name(name, self._registry.reserved)
        if checked is None:
            checked = await self.check(directory)
        digest = checked.manifest.digest
        async with _turn(self._names, name):
            served = self._active(name)
            if served is not None and served.digest == digest:
                self._registry.renew(name, source)
                return served
            async with _turn(self._digests, digest):
                version = await self._copy(directory, digest)
                return await self._publish(name, version, source)

    def _active(self, name: str) -> AdapterVersion | None:
        try:
            return self._registry.get(name).version
        except UnknownAdapter:
            return None

    async def _copy(self, directory: Path, digest: str) -> AdapterVersion:
        """The stored copy is what counts from here on, so it is what gets read and checked again."""
        try:
            await asyncio.to_thread(self._store.put, directory, digest)
        except OSError as error:
            raise AdapterRefused(
                "storage_failed", f"the adapter can't be copied to the data folder: {error.strerror}; free some space"
            ) from error
        try:
            stored = await asyncio.to_thread(check_directory, self._store.path(digest), self._base, self._limits)
            if stored.manifest.digest != digest:
                raise AdapterRefused(
                    "unreadable", "the stored copy differs from what was written; check the disk of the data folder"
                )
        except AdapterRefused:
            await self._remove_unused(digest)
            raise
        return AdapterVersion(digest, stored.manifest, stored.coverage, self._store.path(digest), time.time())

    async def _publish(self, name: str, version: AdapterVersion, source: str) -> AdapterVersion:
        self._registry.add(name, version, source)
        try:
            await self._load(version)
            self._registry.activate(name, version.digest)
        except self._load_errors as error:
            raise AdapterRefused("activation_failed", str(error)) from error
        except UnknownAdapter as unknown:
            raise AdapterRefused(WITHDRAWN, f"{name!r} was unloaded while it was loading; load it again") from unknown
        finally:
            self._registry.withdraw(name, version.digest)  # nothing to do once it is active
        return version

    def discard_soon(self, version: AdapterVersion) -> None:
        """The registry's `on_idle`: unload and delete the version unless somebody uses it again by then."""
        task = asyncio.get_running_loop().create_task(self._discard(version))
        self._discards.add(task)
        task.add_done_callback(self._discarded)

    async def _discard(self, version: AdapterVersion) -> None:
        async with _turn(self._digests, version.digest):
            if self._registry.uses(version.digest):
                return
            await self._unload(version)
            await self._remove_unused(version.digest)

    def _discarded(self, task: asyncio.Task[None]) -> None:
        self._discards.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("an idle adapter version could not be dropped: %s", task.exception())

    async def _remove_unused(self, digest: str) -> None:
        if not self._registry.uses(digest):
            await asyncio.to_thread(self._store.remove, digest)

    async def prune(self) -> list[str]:
        """Delete stored versions that no name and no request uses, such as those of an earlier run."""
        pruned = []
        for digest in await asyncio.to_thread(self._store.digests):
            if self._registry.uses(digest):
                continue  # it may be loading, which is no reason to wait
            async with _turn(self._digests, digest):
                if not self._registry.uses(digest):
                    await asyncio.to_thread(self._store.remove, digest)
                    pruned.append(digest)
        return pruned

    async def settle(self) -> None:
        """Wait until every idle version so far is unloaded and deleted."""
        while self._discards:
            await asyncio.wait(set(self._discards))
