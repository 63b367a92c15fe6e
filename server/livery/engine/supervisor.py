"""An engine that outlives its process: lost to a crash, a hang or its device, it is started anew.

Every open request fails at once with EngineRestarting, and so does every new one until the new process serves. What
was in device memory is asked for again then. Too many losses in too short a time end the engine for good: what keeps
ending it is nothing that one more start would change, and whoever supervises the server may know better.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec

from livery.engine.base import (
    NOBODY,
    AdapterLoadFailed,
    AdapterRef,
    Asker,
    Engine,
    EngineConfig,
    EngineDead,
    EngineError,
    EngineInfo,
    EngineRestarting,
    EngineStats,
    GenerationRequest,
    TokenDelta,
)
from livery.engine.figures import PromptRead
from livery_adapters.effect import AdapterEffect

log = logging.getLogger(__name__)

WINDOW_S = 600.0  # in which restarts are counted
SUPERVISOR = "engine-supervisor"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between two starts
LOOK_S = 2.0  # how often it is noted what is in device memory
REMEMBERED = 4096  # versions
# A start that takes so many times as long as the first one did, and at least so long, hangs.
PATIENCE, SHORTEST_PATIENCE_S = 5.0, 300.0

Lost = Callable[[str], EngineError]
MakeEngine = Callable[[EngineConfig, Lost], Engine]


class RestartBudget:
    """How often an engine may be started anew: `restarts` times within WINDOW_S.

    The first time at once, then after `pause_s`, and each time after twice as long, up to LONGEST_PAUSE_S.
    """

    def __init__(self, restarts: int, pause_s: float = FIRST_PAUSE_S) -> None:
        self.restarts = restarts
        self._pause_s = pause_s
        self._taken: deque[float] = deque()

    def pause(self, now: float) -> float | None:
        """Seconds to wait before the next start; None where none is left."""
        while self._taken and self._taken[0] <= now - WINDOW_S:
            self._taken.popleft()
        if len(self._taken) >= self.restarts:
            return None
        return min(self._pause_s * 2.0 ** (len(self._taken) - 1), LONGEST_PAUSE_S) if self._taken else 0.0

    def take(self, now: float) -> None:
        self._taken.append(now)


class SupervisedEngine:
    """The Engine protocol over engines that follow one another. Use from one event loop."""

    def __init__(self, config: EngineConfig, make: MakeEngine, pause_s: float = FIRST_PAUSE_S) -> None:
        """`make` makes an engine that isn't started yet, and that tells its requests of its end by what it is given.

        `pause_s`: before the second start within WINDOW_S, and twice as long before each one more.
        """
        self._config, self._make = config, make
        self._budget = RestartBudget(config.restarts, pause_s)
        self._engine = make(config, self._lost)
        self._serving = False
        self._restarts = 0
        self._took_s = 0.0  # the last start
        self._back_at: float | None = None  # when one that was lost may be back, by the loop's own clock
        self._why: str | None = None  # it is at its end for good
        self._ended = ""  # a task beside the supervisor's that ended by itself
        self._end = asyncio.Event()
        # What was asked for last comes last, with the tenant that did.
        self._known: OrderedDict[str, tuple[AdapterRef, Asker]] = OrderedDict()
        self._resident: tuple[str, ...] = ()
        self._kept: tuple[str, ...] = ()
        self._tasks: list[asyncio.Task[None]] = []
        self._reloading: asyncio.Task[None] | None = None

    # -- Engine --------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        begun = time.monotonic()
        info = await self._engine.start()
        self._took_s = time.monotonic() - begun
        self._serving = True
        self._tasks = [self._run(SUPERVISOR, self._mind(info)), self._run("engine-residents", self._note())]
        return info

    async def stop(self) -> None:
        self._ends("the engine was stopped")
        tasks = [*self._tasks, *([self._reloading] if self._reloading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engine.stop()

    def kill(self) -> None:
        self._ends("the engine was ended")
        self._engine.kill()

    async def died(self) -> str:
        await self._end.wait()
        return self._why or ""

    def generate(self, request: GenerationRequest, read: PromptRead | None = None) -> AsyncIterator[TokenDelta]:
        if request.adapter is not None:
            self._remember(request.adapter, Asker.of(request))
        return self._running().generate(request, read)

    async def abort(self, request_id: str) -> None:
        if self._serving:
            await self._engine.abort(request_id)

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        self._remember(adapter, asker)
        return await self._running().load_adapter(adapter, asker)

    async def unload_adapter(self, digest: str) -> None:
        self._known.pop(digest, None)
        if self._serving:
            await self._engine.unload_adapter(digest)

    async def keep_adapters(self, digests: tuple[str, ...]) -> None:
        self._kept = digests
        if self._serving:
            await self._engine.keep_adapters(digests)

    async def stats(self) -> EngineStats:
        stats = await self._running().stats()
        self._resident = stats.resident_adapters
        return msgspec.structs.replace(stats, restarts=self._restarts)

    async def ready(self) -> bool:
        if self._ended:
            raise EngineDead(f"the server's {self._ended} has ended; the server must be restarted")
        return await self._running().ready()

    # -- inside --------------------------------------------------------------------------------------

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._check_task)
        return task

    def _check_task(self, task: asyncio.Task[None]) -> None:
        """Nothing starts these again: without the supervisor the server ends, without another it isn't ready."""
        error = None if task.cancelled() else task.exception()
        if self._why is not None or (error is None and not task.cancelled()):
            return
        self._ended = task.get_name()
        log.critical("the server's %s ended by itself; restart the server", self._ended, exc_info=error)
        if self._ended == SUPERVISOR:
            self._ends(f"the server's {SUPERVISOR} ended by itself ({error or 'cancelled'})")

    def _running(self) -> Engine:
        if not self._serving:
            raise self._lost(self._why or "")
        return self._engine

    def _remember(self, adapter: AdapterRef, asker: Asker) -> None:
        self._known[adapter.digest] = adapter, asker
        self._known.move_to_end(adapter.digest)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _lost(self, reason: str) -> EngineError:
        """What a request is told that was open when the engine was lost, or that comes before it is back."""
        now = time.monotonic()
        if self._why is not None:
            return EngineDead(self._why)
        if self._back_at is None:
            pause = self._budget.pause(now)
            if pause is None:
                return EngineDead(reason)
            self._back_at = now + pause + self._took_s
        return EngineRestarting(max(1, math.ceil(self._back_at - now)))

    def _ends(self, why: str) -> None:
        self._serving = False
        self._why = self._why or why
        self._end.set()

    async def _mind(self, first: EngineInfo) -> None:
        """Start the engine anew whenever it is lost, until that makes no sense any more."""
        while True:
            reason = await self._engine.died()
            if self._why is not None:  # it was to end
                return
            self._serving = False
            try:
                await self._engine.stop()
                self._engine = await self._started_anew(reason, first)
            except EngineDead as dead:
                return self._ends(str(dead))
            self._serving, self._back_at = True, None
            self._reloading = self._run("engine-reload", self._reload(self._engine))

    async def _started_anew(self, reason: str, first: EngineInfo) -> Engine:
        """The engine's successor, serving. Raises EngineDead where there is none."""
        patience = max(SHORTEST_PATIENCE_S, PATIENCE * self._took_s)
        # What was found out by measuring or from the memory that was free stays as it was.
        config = msgspec.structs.replace(self._config, threads=first.threads, max_model_len=first.max_model_len)
        while True:
            pause = self._budget.pause(time.monotonic())
            if pause is None:
                raise EngineDead(f"{reason}; {self._spent()}")
            self._budget.take(time.monotonic())
            self._back_at = time.monotonic() + pause + self._took_s
            log.error("the engine was lost and is started anew in %.0f s: %s", pause, reason)
            await asyncio.sleep(pause)
            begun = time.monotonic()
            engine = self._make(config, self._lost)
            try:
                async with asyncio.timeout(patience):
                    info = await engine.start()
            except TimeoutError:
                reason = f"its new process did not serve within {patience:.0f} s"
                continue
            except (EngineError, OSError) as error:  # a model that was served is refused for want of memory
                reason = f"its new process did not come to serve: {error}"
                continue
            self._took_s = time.monotonic() - begun
            self._restarts += 1
            if _essence(info) != _essence(first):
                await engine.stop()
                raise EngineDead(f"{reason}; the model's files have changed since the server was started")
            log.warning("the engine serves again after %.1f s", self._took_s)
            return engine

    def _spent(self) -> str:
        if not self._budget.restarts:
            return "it isn't started anew (--engine-restarts 0)"
        return (
            f"it was started anew {self._budget.restarts} times within {WINDOW_S / 60:.0f} minutes already "
            "(--engine-restarts), so the server ends"
        )

    async def _reload(self, engine: Engine) -> None:
        """Have what is kept, and what was in device memory, read again; what fails is read when it is asked for."""
        await engine.keep_adapters(self._kept)
        resident = set(self._resident)
        used = [digest for digest in reversed(self._known) if digest in resident]
        for digest in dict.fromkeys((*self._kept, *used)):
            if (known := self._known.get(digest)) is None:  # nobody asks for it any more
                continue
            try:
                await engine.load_adapter(*known)
            except AdapterLoadFailed as failed:
                log.warning("adapter %s isn't loaded again: %s", digest[:12], failed)
            except EngineError:  # lost once more
                return

    async def _note(self) -> None:
        """Know what is in device memory when the engine is lost."""
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(EngineError):
                await self.stats()


def _essence(info: EngineInfo) -> tuple[object, ...]:
    """What requests were admitted by: a successor in which any of it differs would answer something else."""
    return (
        *(info.architecture, info.base_digest, info.dtype, info.vocab_size, info.max_model_len),
        *(info.eos_token_ids, info.pad_token_id, info.shapes),
    )
