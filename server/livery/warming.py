"""What names that are pinned stand for stays in device memory, and is read before anybody asks for it.

    warmer = Warmer(engine, library, prefetch)
    await warmer.look()       # what is pinned by now; what isn't read yet is left to `run`
    await warmer.run()        # for ever: reads it, and what couldn't be read again after a while; cancel it to stop

Reading takes as long as fetching files from elsewhere does, so nothing else waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from livery.engine.base import Engine, EngineDead, EngineError
from livery.refusals import AdapterNotReady, AdapterUnusable, Overloaded
from livery_adapters.library import AdapterLibrary
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import AdapterRecord, RegistryError

log = logging.getLogger("livery.adapters")

AGAIN_S = 1.0  # before the first new try of what couldn't be read; each later wait is twice as long
LONGEST_WAIT_S = 300.0

# What may keep one from being read now: the others still are, and it is tried again.
PASSING = (
    AdapterUnusable, AdapterNotReady, AdapterRefused, Overloaded, EngineError, RegistryError, SQLAlchemyError, OSError,
)  # fmt: skip


class Warmer:
    """Of one server. Use from one event loop."""

    def __init__(
        self, engine: Engine, library: AdapterLibrary, prefetch: Callable[[AdapterRecord], Awaitable[None]]
    ) -> None:
        """`prefetch` has the engine read a record's active version. Raises PASSING."""
        self._engine = engine
        self._library = library
        self._prefetch = prefetch
        self._news = asyncio.Event()
        self._reading = asyncio.Lock()
        self._missing: dict[str, AdapterRecord] = {}  # by converted digest: pinned, and not read yet
        self._read: set[str] = set()  # converted digests of those that were

    async def look(self) -> None:
        """Have the engine keep what is pinned by now. Raises RegistryError, EngineError."""
        pinned = await asyncio.to_thread(self._library.registry.pinned)
        records = [one for one in pinned if one.active is not None and not one.active.facts.weightless]
        wanted = {self._digest(record): record for record in records}
        await self._engine.keep_adapters(tuple(sorted(wanted)))
        self._read &= wanted.keys()
        missing = {digest: record for digest, record in wanted.items() if digest not in self._read}
        if missing.keys() - self._missing.keys():
            self._news.set()
        self._missing = missing

    async def settle(self) -> None:
        """Have what is missing read, each tried once. Raises EngineDead."""
        async with self._reading:
            for digest, record in list(self._missing.items()):
                if digest in self._missing:  # it may be pinned no longer
                    await self._warm(digest, record)

    async def run(self) -> None:
        """Read what is missing, at once where it is new and else after growing pauses, until the engine is dead."""
        wait_s = AGAIN_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s if self._missing else None):
                    await self._news.wait()
            wait_s = AGAIN_S if self._news.is_set() else min(2 * wait_s, LONGEST_WAIT_S)
            self._news.clear()
            try:
                await self.settle()
            except EngineDead:
                return

    async def _warm(self, digest: str, record: AdapterRecord) -> None:
        try:
            await self._prefetch(record)
        except EngineDead:
            raise
        except PASSING as refusal:
            log.warning("pinned adapter %s isn't loaded, which is tried again: %s", record.name, refusal)
            return
        if self._missing.pop(digest, None) is not None:
            self._read.add(digest)

    def _digest(self, record: AdapterRecord) -> str:
        """What the engine knows the active version as."""
        assert record.active is not None
        return self._library.candidate(record.active.facts).digest
