"""One process's HTTP server over its parts: the only one of a server, or one of several over one engine."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from socket import socket
from types import FrameType

from livery.api.edges import EdgeConfig, EdgeServer
from livery.assembly import ServerParts
from livery.engine.base import Engine, EngineDead, EngineInfo
from livery.listening import Listener
from livery.models import ResolvedModel
from livery.running.admin_listener import admin_api
from livery.running.announce import MAX_LISTED, announce, open_door
from livery.running.engine_knobs import asked_for
from livery.running.parts import application, server_doors, server_parts
from livery.settings import Settings
from livery.spans import TraceSink
from livery.superseding import Superseded
from livery.survey import Counting
from livery.tenancy.gate import Gatekeeper
from livery_adapters.composition import MAX_PARTS

log = logging.getLogger("livery.serve")

# For what waits for disk and database, not for what computes; the default is a handful on a small machine.
IO_THREADS = 32
HURRY_S = 1.5  # from the second signal to the end, however things stand


@dataclass(frozen=True, slots=True)
class Premises:
    """What a server has before anything in it serves HTTP: its engine runs, its addresses are taken."""

    settings: Settings
    resolved: ResolvedModel
    engine: Engine
    info: EngineInfo
    listener: Listener
    admin: Listener | None


@asynccontextmanager
async def ended_by_death(engine: Engine, end: Callable[[], None]) -> AsyncIterator[None]:
    """Stop the server, by `end`, when its engine dies: nothing can be answered, and a supervisor restarts what ends.

    Raises EngineDead at the end of the block if that is what ended it.
    """

    async def watch() -> str:
        reason = await engine.died()
        log.error("the engine died and the server stops: %s", reason)
        end()
        return reason

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        if not watching.done():
            watching.cancel()
        await asyncio.wait([watching])
    if not watching.cancelled():
        raise EngineDead(watching.result())


class OneProcess:
    """All of a server but its engine, in this process. Use from one event loop."""

    def __init__(
        self,
        premises: Premises,
        tracing: TraceSink | None,
        *,
        gate: Gatekeeper | None = None,
        counting: Counting | None = None,
        number: int = 0,
        started: Callable[[], None] | None = None,
        elsewhere: Callable[[int], int] = lambda _: 0,
    ) -> None:
        """One of several has what asks for all of them, and a `number`; `started` is called once it takes requests, and
        the server announced where it isn't given. `elsewhere` is EdgeConfig's.
        """
        self._premises = premises
        self._gate, self._counting, self._number, self._started = gate, counting, number, started
        self._elsewhere = elsewhere
        self._tracing = tracing
        self._parts: ServerParts | None = None
        self._server: HttpServer | None = None
        self._ended = False

    async def start(self, say: Callable[[str], None]) -> None:
        """Open what it needs. Raises what `server_parts` raises."""
        on = self._premises
        parts = self._parts = await server_parts(
            *(on.settings, on.resolved, on.engine, on.info, say, self._gate, self._counting), first=self._number == 0
        )
        self._server = HttpServer(on, parts, self._tracing, self._elsewhere, self._started)

    async def run(self) -> None:
        """Serve until it is told to stop."""
        assert self._server is not None and self._parts is not None
        if self._ended:
            return
        on = self._premises
        async with admin_api(on.settings, self._parts, on.admin):
            await self._server.serve(sockets=[on.listener.socket])

    async def stop(self) -> None:
        """Requests must have ended."""
        if self._parts is not None:
            await self._parts.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    @property
    def hurried(self) -> int | None:
        """The second signal, if there was one."""
        return self._server.hurried if self._server is not None else None

    def hurry(self, number: int) -> None:
        """Stop now, for a second signal."""
        if self._server is not None and self.hurried is None:
            self._server.hurry(number)

    def end(self) -> None:
        """Stop without having been told to, or not by a signal of one's own."""
        self._ended = True
        if self._server is not None:
            self._server.end()

    async def renew(self, names: Sequence[str], *, keys: bool, superseded: Superseded | None) -> None:
        """Another process of the server changed adapters of these names, or who may come in, or ends requests."""
        if self._parts is not None:
            self._parts.service.adapters.renew(names)
            if superseded is not None:
                self._parts.service.adapters.supersede(superseded)
            if keys:
                await self._parts.keys.refresh()

    async def announce(self) -> None:
        """Print what is served, and where."""
        if self._server is not None:
            await self._server.announce()


class HttpServer(EdgeServer):
    """A server that says when it is ready and stops admitting as soon as it is told to stop."""

    def __init__(
        self,
        premises: Premises,
        parts: ServerParts,
        tracing: TraceSink | None,
        elsewhere: Callable[[int], int],
        started: Callable[[], None] | None = None,
    ) -> None:
        """`started` is called once it takes requests, and the server announced where it isn't given."""
        settings, tls = premises.settings, premises.listener.tls
        self._doors = server_doors(settings, parts)
        config = EdgeConfig(
            application(settings, parts, self._doors, tracing),
            max_connections=settings.max_connections,
            keep_alive_s=settings.keep_alive,
            max_adapters=settings.max_open * MAX_PARTS,
            elsewhere=elsewhere,
            timeout_graceful_shutdown=settings.drain_timeout,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        super().__init__(config)
        self._premises = premises
        self._service = parts.service
        self._management = parts.management
        self._started = started
        self._told = False
        self.hurried: int | None = None  # the second signal

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._started is not None:
            self._started()
        elif self.started:
            await self.announce()

    async def announce(self) -> None:
        """Print what is served, and where."""
        first = await self._management.ls(limit=MAX_LISTED)
        on, asks = self._premises, self._doors.asks
        asked, warning = asked_for(on.settings), "" if asks else open_door(on.settings)
        announce(self._service, first, on.listener, asked, needs_key=asks, warning=warning, admin=on.admin)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen for the signals that stop the server, without raising them again at the end: the engine
        must still be stopped in good order then.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            if self._started is None:
                loop.add_signal_handler(number, self.handle_exit, number, None)
            else:  # one of several: a second signal is the first process's to understand
                loop.add_signal_handler(number, self.end)
        yield

    def end(self) -> None:
        """Stop without having been told to: a signal that comes then, or came before, is the only one."""
        self._service.drain()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._told:
            self._told = True
            self._service.drain()
            super().handle_exit(sig, frame)
        elif self.hurried is None:
            self.hurry(sig)

    def hurry(self, sig: int) -> None:
        """End now: what is under way gets a moment to say that this isn't its end."""
        log.warning("told to stop twice: what is under way is ended")
        self.hurried = sig
        self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()

        def end() -> None:
            self._premises.engine.kill()
            os._exit(128 + sig)

        timer = threading.Timer(HURRY_S, end)  # whatever holds up the loop doesn't hold up this
        timer.daemon = True
        timer.start()
