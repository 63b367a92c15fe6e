"""The first process of a server with several workers (`--api-workers N`): it has the engine and what all share."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable

from livery.assembly import gate_for
from livery.commands.http_server import HURRY_S
from livery.commands.parts import base_name
from livery.engine.base import Engine, EngineInfo
from livery.listening import Listener
from livery.models import ResolvedModel
from livery.settings import Settings, as_told
from livery.workers import messages as m
from livery.workers.hub import Hub
from livery.workers.ledger import Ledger
from livery.workers.pool import Pool

log = logging.getLogger("livery.workers")


class ApiWorkers:
    """Runs the workers until the server is told to stop. Use from one event loop."""

    def __init__(
        self,
        settings: Settings,
        resolved: ResolvedModel,
        engine: Engine,
        info: EngineInfo,
        listener: Listener,
        admin: Listener | None,
    ) -> None:
        sockets = [listener.socket, *([admin.socket] if admin is not None else [])]
        self._engine = engine
        self.hurried: int | None = None  # the second signal
        self._told = False
        gate = gate_for(info, settings.max_open, settings.max_queued_tokens)
        hub = Hub(engine, gate, Ledger(base_name(settings, resolved), info, settings.metrics_max_adapters))
        told = as_told(settings)

        def begin(number: int) -> m.Begin:
            return m.Begin(
                number,
                settings.api_workers,
                told,
                str(resolved.path),
                resolved.name,
                info,
                listener.socket.fileno(),
                admin.socket.fileno() if admin is not None else None,
            )

        self._processes = settings.api_workers
        self._pool = Pool(hub, begin, settings.api_workers, [one.fileno() for one in sockets])

    async def start(self, say: Callable[[str], None]) -> None:
        """Have all of them serve. Raises WorkersUnable."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        say(f"starting {self._processes} API workers")
        await self._pool.start()

    async def run(self) -> None:
        """Serve until told to stop."""
        await self._pool.done()

    async def stop(self) -> None:
        self._pool.kill()
        await self._pool.done()

    def end(self) -> None:
        """The engine is at its end for good."""
        self._pool.end("the engine died")

    def _on_signal(self, number: int) -> None:
        if not self._told:
            self._told = True
            self._pool.drain(number)
        elif self.hurried is None:
            self._hurry(number)

    def _hurry(self, number: int) -> None:
        """End now: workers get a moment to say to their clients that this isn't their end."""
        log.warning("told to stop twice: what is under way is ended")
        self.hurried = number
        self._pool.drain(number)

        def end() -> None:
            self._pool.kill()
            self._engine.kill()
            os._exit(128 + number)

        timer = threading.Timer(HURRY_S, end)  # whatever holds up the loop doesn't hold up this
        timer.daemon = True
        timer.start()
