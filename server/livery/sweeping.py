"""What neither a request nor a name uses any more leaves the engine, and then the disk.

    sweeper = Sweeper(engine, library, holds, warmer.look)
    await sweeper.run()       # for ever: sweeps whenever something came to an end; cancel the task to stop
    sweeper.idle(digest)      # no request uses it any more; `sweeper.changed(names)`: names stand for something else

A sweep looks at what came to an end since the last one, not at all that was ever asked for. Knows no requests: `Holds`
says what they hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from sqlalchemy.exc import SQLAlchemyError

from livery.engine.base import Engine, EngineDead, EngineError, EngineRestarting
from livery.holds import Holds, Told
from livery_adapters.library import AdapterLibrary
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import RegistryError
from livery_adapters.store import StoreBusy

log = logging.getLogger("livery.adapters")

AGAIN_S = 0.5  # after a sweep that failed
COMPOSITIONS_KEPT = 64  # in the engine, beside those in use


class Serving:
    """Why what nobody uses stays: for each converted digest one name for each of its files, whose active version has
    them. Only when such a name changes is there a question again.
    """

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}  # by digest
        self._digests: dict[str, set[str]] = {}  # by name

    def note(self, digest: str, names: Iterable[str]) -> None:
        """It stays for these."""
        self.forget(digest)
        self._names[digest] = frozenset(names)
        for name in self._names[digest]:
            self._digests.setdefault(name, set()).add(digest)

    def forget(self, digest: str) -> None:
        """It stays for nobody."""
        for name in self._names.pop(digest, ()):
            self._digests[name].discard(digest)
            if not self._digests[name]:
                del self._digests[name]

    def of(self, names: Iterable[str]) -> set[str]:
        """What stays for these names."""
        return {digest for name in names for digest in self._digests.get(name, ())}


class Sweeper:
    """Of one server. Use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        library: AdapterLibrary,
        holds: Holds,
        look_at_pinned: Callable[[], Awaitable[None]],
    ) -> None:
        """`look_at_pinned` is called when names stand for something else. Raises RegistryError, EngineError."""
        self._engine = engine
        self._library = library
        self._holds = holds
        self._look_at_pinned = look_at_pinned
        self._dirty = asyncio.Event()
        self._sweeping = asyncio.Lock()
        self._garbage = True  # an earlier run may have left some
        # What is to be looked at: what is no longer used, what changed names stood for, or all that is there.
        self._idle: set[str] = set()
        self._names: set[str] = set()
        self._all = True
        self._serving = Serving()

    def idle(self, digest: str) -> None:
        """A converted digest is no longer in use."""
        self._idle.add(digest)
        self._dirty.set()

    def changed(self, names: Iterable[str] | None) -> None:
        """These names, or (None) any, stand for something else, so that files may be nobody's."""
        if names is None:
            self._all = True
        else:
            self._names.update(names)
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
            except AdapterRefused as refused:  # the files are another registry's: nothing here is to be deleted
                log.error("what is no longer used stays in the data folder: %s", refused.message)
            except (RegistryError, SQLAlchemyError, EngineError, StoreBusy, OSError) as error:
                if not isinstance(error, EngineRestarting):
                    log.warning("what is no longer used could not be dropped yet: %s", error)
                self._garbage = True
                await asyncio.sleep(AGAIN_S)
                self._dirty.set()

    async def _sweep(self) -> None:
        """Take out of the engine, then off the disk, what neither a request nor a name uses."""
        surplus = frozenset(self._holds.surplus(COMPOSITIONS_KEPT))
        due = self._holds.unused(None if self._all else self._idle | self._serving.of(self._names) | surplus)
        self._all, self._idle, self._names = False, set(), set()
        try:
            await self._drop(due, surplus)
        except BaseException:
            self._idle.update(told.digest for told in due)
            raise
        if self._garbage:
            self._garbage = False
            await self._look_at_pinned()
            await self._library.collect_garbage()

    async def _drop(self, due: Sequence[Told], surplus: Collection[str]) -> None:
        """Take those of these out of the engine that no name stands for."""
        wanted = {one for told in due for one in told.weights}
        names = await asyncio.to_thread(self._library.registry.weights_serving, wanted) if wanted else {}
        for told in due:
            if self._holds.in_use(told.digest):
                continue  # and looked at again when it isn't
            if told.digest not in surplus and names.keys() >= set(told.weights):
                self._serving.note(told.digest, {names[one] for one in told.weights})
                continue
            await self._engine.unload_adapter(told.digest)
            self._holds.forget(told.digest)
            self._serving.forget(told.digest)
            self._garbage = True  # its files were kept as long as it was in use
