"""The first process of a server with several workers (`--api-workers N`): it has the engine and what all share."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable

from livery.assembly import gate_for, shared_limits
from livery.running.http_server import HURRY_S, Premises
from livery.running.parts import base_name
from livery.settings import as_told
from livery.tenancy import LevelExchange, TenantStore
from livery.workers import messages as m
from livery.workers.hub import Hub
from livery.workers.ledger import Ledger
from livery.workers.pool import Pool

log = logging.getLogger("livery.workers")


class ApiWorkers:
    """Runs the workers until the server is told to stop. Use from one event loop."""

    def __init__(self, premises: Premises) -> None:
        settings, resolved, info = premises.settings, premises.resolved, premises.info
        self._engine = premises.engine
        self.hurried: int | None = None  # the second signal
        self._told = False
        self._registry = settings.registry
        self._tenants: TenantStore | None = None
        self._levels: LevelExchange | None = None
        self._gate = gate_for(info, settings.max_open, settings.max_queued_tokens)
        ledger = Ledger(base_name(settings, resolved), info, settings.metrics_max_adapters)
        listener = premises.listener.socket.fileno()
        admin = None if premises.admin is None else premises.admin.socket.fileno()
        told = as_told(settings)

        def begin(number: int, connections: int) -> m.Begin:
            return m.Begin(number, told, str(resolved.path), resolved.name, info, listener, admin, connections)

        self._processes = settings.api_workers
        self._pool = Pool(
            Hub(premises.engine, self._gate, ledger),
            begin,
            settings.api_workers,
            [listener] if admin is None else [listener, admin],
            hang_s=settings.hang_timeout,
            drain_s=settings.drain_timeout,
        )

    async def start(self, say: Callable[[str], None]) -> None:
        """Have all of them serve. Raises WorkersUnable, RegistryError.

        Cancelled, as by whoever tells the server to stop before it serves, it ends those that there are.
        """
        try:
            await self._start(say)
        except BaseException:
            await self.stop()
            raise
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    async def _start(self, say: Callable[[str], None]) -> None:
        if self._registry is not None:  # whose other servers may let in the same keys
            self._tenants = await asyncio.to_thread(TenantStore.open, self._registry)
            self._levels = shared_limits(self._gate, self._tenants)
            self._levels.start()
        say(f"starting {self._processes} API workers")
        await self._pool.start()

    async def run(self) -> None:
        """Serve until told to stop."""
        await self._pool.done()

    async def stop(self) -> None:
        self._pool.kill()
        await self._pool.done()
        if self._levels is not None:
            await self._levels.stop()
        if self._tenants is not None:
            await asyncio.to_thread(self._tenants.close)

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
