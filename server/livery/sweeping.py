"""What neither a request nor a name uses any more leaves the engine, and then the disk; what is pinned stays in memory.

    sweeper = Sweeper(engine, library, holds, prefetch)
    await sweeper.run()       # for ever: sweeps whenever something came to an end; cancel the task to stop
    sweeper.soon()            # a request ended; `sweeper.changed()`: names stand for something else

Knows no requests: `Holds` says what they hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from livery.engine.base import Engine, EngineDead, EngineError, EngineRestarting
from livery.holds import Holds
from livery.refusals import AdapterNotReady, AdapterUnusable
from livery_adapters.library import AdapterLibrary
from livery_adapters.registry import AdapterRecord, RegistryError
from livery_adapters.store import StoreBusy

log = logging.getLogger("livery.adapters")

AGAIN_S = 0.5  # after a sweep that failed
COMPOSITIONS_KEPT = 64  # in the engine, beside those in use


class Sweeper:
    """Of one server. Use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        library: AdapterLibrary,
        holds: Holds,
        prefetch: Callable[[AdapterRecord], Awaitable[None]],
    ) -> None:
        """`prefetch` has the engine read a record's active version. Raises AdapterUnusable, AdapterNotReady."""
        self._engine = engine
        self._library = library
        self._holds = holds
        self._prefetch = prefetch
        self._dirty = asyncio.Event()
        self._sweeping = asyncio.Lock()
        self._garbage = True  # an earlier run may have left some
        self._kept: frozenset[str] = frozenset()  # converted digests that the engine was asked to keep

    def soon(self) -> None:
        """Something is no longer in use."""
        self._dirty.set()

    def changed(self) -> None:
        """Names stand for something else, so that files may be nobody's."""
        self._garbage = True
        self._dirty.set()

    async def settle(self) -> None:
        """Wait until what nobody uses any more has left the engine and the disk."""
        async with self._sweeping:
            await self._sweep()

    async def run(self) -> None:
        """Sweep whenever something came to an end; what failed is done again."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self.settle()
            except EngineDead:
                return
            except (RegistryError, EngineError, StoreBusy, OSError) as error:
                if not isinstance(error, EngineRestarting):
                    log.warning("what is no longer used could not be dropped yet: %s", error)
                self._garbage = True
                await asyncio.sleep(AGAIN_S)
                self._dirty.set()

    async def _sweep(self) -> None:
        """Take out of the engine, then off the disk, what neither a request nor a name uses."""
        unused = self._holds.unused()
        wanted = {one for told in unused for one in told.weights}
        serving = set(await asyncio.to_thread(self._library.registry.weights_serving, wanted)) if wanted else set()
        composed = [told.digest for told in unused if told.composed]
        surplus = set(composed[: max(0, len(composed) - COMPOSITIONS_KEPT)])
        for told in unused:
            served = serving.issuperset(told.weights) and told.digest not in surplus
            if not served and not self._holds.in_use(told.digest):
                await self._engine.unload_adapter(told.digest)
                self._holds.forget(told.digest)
                self._garbage = True  # its files were kept as long as it was in use
        if self._garbage:
            self._garbage = False
            await self._keep_pinned()
            await self._library.collect_garbage()

    async def _keep_pinned(self) -> None:
        """What names that are pinned stand for now stays in device memory, and is read where it isn't there yet."""
        pinned = await asyncio.to_thread(self._library.registry.pinned)
        records = [record for record in pinned if record.active is None or not record.active.facts.weightless]
        digests = {record.name: self._digest(record) for record in records}
        await self._engine.keep_adapters(tuple(sorted(set(digests.values()))))
        for record in records:
            if digests[record.name] not in self._kept:
                await self._warm(record)
        self._kept = frozenset(digests.values())

    async def _warm(self, record: AdapterRecord) -> None:
        """If one can't be loaded, the others still are."""
        try:
            await self._prefetch(record)
        except (AdapterUnusable, AdapterNotReady) as refusal:
            log.warning("pinned adapter %s isn't loaded: %s", record.name, refusal)

    def _digest(self, record: AdapterRecord) -> str:
        """What the engine knows the active version as."""
        assert record.active is not None
        return self._library.candidate(record.active.facts).digest
