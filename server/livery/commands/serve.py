"""`livery serve`: puts the engine, the adapters, the service and the HTTP application together and runs them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from socket import socket
from types import FrameType

from rich.console import Console

from livery import logs
from livery.api.edges import EdgeConfig, EdgeServer
from livery.assembly import ServerParts
from livery.commands.admin_listener import admin_api, check_admin_doors
from livery.commands.announce import MAX_LISTED, announce, open_door
from livery.commands.engine_knobs import asked_for, engine_config
from livery.commands.engines import MakeEngine, engine_of
from livery.commands.parts import (
    application,
    base_name,
    known_base,
    server_doors,
    server_parts,
    shared_blobs,
    trace_sink,
)
from livery.data_folder import DataFolder
from livery.engine.base import Engine, EngineDead
from livery.listening import Listener, listen, listen_for_admins
from livery.models import ResolvedModel, resolve_model
from livery.settings import Settings, SettingsError
from livery.spans import TraceSink
from livery.tenancy import Doors, TenantStore, check_binding

log = logging.getLogger("livery.serve")

HURRY_S = 1.5  # from the second signal to the end, however things stand

# For what waits for disk and database, not for what computes; the default is a handful on a small machine.
IO_THREADS = 32


def serve(settings: Settings) -> None:
    """Serve a base model and a folder of adapters over an OpenAI-compatible API."""
    run_server(settings, engine_of(settings))


def run_server(settings: Settings, make_engine: MakeEngine) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way get `drain_timeout` seconds to finish.

    Raises SettingsError, OpenDoor, ModelNotFound, ModelRefused, TokenizerRefused, DataFolderUnusable or
    RegistryError, and
    EngineDead when the engine ended for good: a supervisor then starts everything afresh.
    """
    if settings.adapters is not None and not settings.adapters.is_dir():
        raise SettingsError(f"--adapters {settings.adapters} is not a folder; create it or give another")
    folder = DataFolder(settings.data_folder)
    folder.make()
    logs.configure(settings.log_level, settings.log_format)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # what became of a change is said by the adapter source
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with closing(TenantStore.open(folder.tenants_url(settings.registry))) as tenants:
        keyed = settings.api_key is not None or tenants.keyed()
        check_binding(settings.host, settings.insecure_no_auth, keyed=keyed)
        check_admin_doors(settings, tenants)
    with closing(listen(settings)) as listener, ExitStack() as stack:
        admin = listen_for_admins(settings)
        if admin is not None:
            stack.enter_context(closing(admin))
        resolved = resolve_model(settings.model)
        base_name(settings, resolved)
        shared_blobs(settings)
        try:
            asyncio.run(_serve(settings, resolved, listener, admin, make_engine))
        except asyncio.CancelledError:
            raise SystemExit(128 + signal.SIGTERM) from None  # told to stop while it was starting


async def _serve(
    settings: Settings,
    resolved: ResolvedModel,
    listener: Listener,
    admin: Listener | None,
    make_engine: MakeEngine,
) -> None:
    # Until the server has its own way of stopping, a SIGTERM ends the start in good order.
    main = asyncio.current_task()
    assert main is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, main.cancel)
    tracing = trace_sink(settings)
    loop.set_default_executor(ThreadPoolExecutor(IO_THREADS, "livery"))
    with ExitStack() as held:
        with _stages(f"loading {resolved.name}") as say:
            engine = make_engine(engine_config(settings, resolved.path), say)
            info = await engine.start()
            try:
                held.enter_context(DataFolder(settings.data_folder).serving(known_base(settings, resolved, info)))
                parts = await server_parts(settings, resolved, engine, info, say)
            except BaseException:
                await engine.stop()
                raise
        server = _Server(settings, parts, server_doors(settings, parts), listener, admin, engine, tracing)
        try:
            async with _ended_by_death(engine, server), admin_api(settings, parts, admin):
                await server.serve(sockets=[listener.socket])
        finally:
            if server.hurried is not None:
                engine.kill()
            await parts.stop()
            await engine.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
        if server.hurried is not None:
            raise SystemExit(128 + server.hurried)


@contextmanager
def _stages(first: str) -> Iterator[Callable[[str], None]]:
    """Say what the start is busy with: beside a spinner on a terminal, as log lines elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(first) as status:
            yield status.update
    else:
        log.info("starting: %s", first)
        yield lambda stage: log.info("starting: %s", stage)


@asynccontextmanager
async def _ended_by_death(engine: Engine, server: _Server) -> AsyncIterator[None]:
    """Stop the server when its engine dies: nothing can be answered, and a supervisor restarts what ends.

    Raises EngineDead at the end of the block if that is what ended it.
    """

    async def watch() -> str:
        reason = await engine.died()
        log.error("the engine died and the server stops: %s", reason)
        server.end()
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


class _Server(EdgeServer):
    """A server that says when it is ready and stops admitting as soon as it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        parts: ServerParts,
        doors: Doors,
        listener: Listener,
        admin: Listener | None,
        engine: Engine,
        tracing: TraceSink | None,
    ) -> None:
        config = EdgeConfig(
            application(settings, parts, doors, tracing),
            max_connections=settings.max_connections,
            timeout_graceful_shutdown=settings.drain_timeout,
            ssl_certfile=listener.tls.certificate if listener.tls else None,
            ssl_keyfile=listener.tls.key if listener.tls else None,
        )
        super().__init__(config)
        self._settings = settings
        self._service = parts.service
        self._doors = doors
        self._management = parts.management
        self._listener = listener
        self._admin = admin
        self._engine = engine
        self._told = False
        self.hurried: int | None = None  # the second signal

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            first = await self._management.ls(limit=MAX_LISTED)
            asks = self._doors.asks
            asked, warning = asked_for(self._settings), "" if asks else open_door(self._settings)
            announce(self._service, first, self._listener, asked, needs_key=asks, warning=warning, admin=self._admin)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen for the signals that stop the server, without raising them again at the end: the engine
        must still be stopped in good order then.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
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
            self._hurry(sig)

    def _hurry(self, sig: int) -> None:
        """End now: what is under way gets a moment to say that this isn't its end."""
        log.warning("told to stop twice: what is under way is ended")
        self.hurried = sig
        self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()

        def end() -> None:
            self._engine.kill()
            os._exit(128 + sig)

        timer = threading.Timer(HURRY_S, end)  # whatever holds up the loop doesn't hold up this
        timer.daemon = True
        timer.start()
