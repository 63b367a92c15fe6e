"""The engine of another process, as a worker sees it: the Engine protocol over its link with the parent.

The parent has the engine, starts it anew when it is lost, and decides what is a hang: all of that reaches the worker as
what its requests are answered with.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from livery.engine import messages as e
from livery.engine.base import (
    NOBODY,
    AdapterRef,
    Asker,
    EngineDead,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    TokenDelta,
)
from livery.engine.figures import PromptRead
from livery.engine.streams import Streams
from livery.workers import messages as m
from livery.workers.link import Link
from livery_adapters.effect import AdapterEffect

ALONE = "the server's first process is gone"
SILENT = "the server's first process doesn't answer"
READY_S = 2.0  # that the parent may take to say whether the engine is ready, which it knows in a quarter of it


class AttachedEngine:
    """Use from one event loop. `take` is to be given what the parent says of requests."""

    def __init__(self, link: Link, number: int, info: EngineInfo) -> None:
        """`number` is the worker's, which tells its requests from others'."""
        self._link, self._number, self._info = link, number, info
        self._requests = itertools.count(1)
        self._streams = Streams(self._submit, self._drop)
        self._ended = asyncio.Event()
        self._why = ""

    def take(self, message: m.Deltas | m.Failed) -> None:
        match message:
            case m.Deltas(deltas):
                for delta in deltas:
                    self._streams.take(delta)
            case m.Failed(request_id, failure):
                self._streams.fail(request_id, failure.as_error())

    def end(self, reason: str) -> None:
        """Nothing comes any more: of the engine, or of the parent."""
        self._why = self._why or reason
        self._ended.set()
        self._streams.fail_all(lambda: EngineDead(self._why))

    # -- Engine ----------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        return self._info

    async def stop(self) -> None:
        self.end("the worker was stopped")

    def kill(self) -> None:
        """It is the parent's to end."""

    async def died(self) -> str:
        await self._ended.wait()
        return self._why

    def generate(self, request: GenerationRequest, read: PromptRead | None = None) -> AsyncIterator[TokenDelta]:
        request_id = f"{request.request_id}~{self._number}.{next(self._requests)}"
        own = msgspec.structs.replace(request, request_id=request_id)
        return self._streams.generate(own, read)

    async def abort(self, request_id: str) -> None:
        for own in self._streams.open:
            if own.rpartition("~")[0] == request_id:
                await self._drop(own)

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        loaded: m.Loaded = await self._ask(lambda call: m.Load(call, adapter, asker))
        return loaded.effect

    async def unload_adapter(self, digest: str) -> None:
        self._link.send(e.Unload(digest))

    async def keep_adapters(self, digests: tuple[str, ...]) -> None:
        self._link.send(e.Keep(digests))

    async def stats(self) -> EngineStats:
        pong: m.Pong = await self._ask(m.Stats)
        return pong.stats

    async def ready(self) -> bool:
        try:
            async with asyncio.timeout(READY_S):
                told: m.Readiness = await self._ask(m.Ready)
        except TimeoutError:  # nothing is served without it, and nothing here can end it
            raise EngineDead(SILENT) from None
        return told.ready

    # -- inside ----------------------------------------------------------------------------------------

    async def _drop(self, own: str) -> None:
        self._link.send(e.Abort(own))

    async def _submit(self, request: GenerationRequest) -> None:
        self._check()
        self._link.send(e.Submit(request))

    async def _ask(self, make: Callable[[int], msgspec.Struct]) -> Any:  # noqa: ANN401  (as Link.ask)
        self._check()
        return await self._link.ask(make)

    def _check(self) -> None:
        if self._ended.is_set():
            raise EngineDead(self._why)
