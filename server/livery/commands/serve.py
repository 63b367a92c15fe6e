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
from urllib.parse import urlsplit

from rich.console import Console

from livery import logs
from livery.api.app import create_app
from livery.api.edges import EdgeConfig, EdgeServer
from livery.assembly import Assembly, ServerParts, assemble
from livery.commands.admin_listener import admin_api, check_admin_doors
from livery.commands.announce import MAX_LISTED, announce, open_door
from livery.commands.engine_knobs import asked_for, engine_config
from livery.data_folder import DataFolder, KnownBase
from livery.engine.base import Engine, EngineConfig, EngineDead, EngineInfo
from livery.listening import Listener, listen, listen_for_admins
from livery.models import ResolvedModel, resolve_model
from livery.reading import ParserNames
from livery.settings import Settings, SettingsError, revealed
from livery.spans import TraceSink
from livery.tenancy import Doors, TenantStore, check_binding
from livery.text import Tokenizer
from livery_adapters.refusal import Limits

log = logging.getLogger("livery.serve")

HURRY_S = 1.5  # from the second signal to the end, however things stand

# For what waits for disk and database, not for what computes; the default is a handful on a small machine.
IO_THREADS = 32

MakeEngine = Callable[[EngineConfig, Callable[[str], None]], Engine]


def serve(settings: Settings) -> None:
    """Serve a base model and a folder of adapters over an OpenAI-compatible API."""
    run_server(settings, _engine_process)


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
        _base_name(settings, resolved)
        try:
            asyncio.run(_serve(settings, resolved, listener, admin, make_engine))
        except asyncio.CancelledError:
            raise SystemExit(128 + signal.SIGTERM) from None  # told to stop while it was starting


def _engine_process(config: EngineConfig, progress: Callable[[str], None]) -> Engine:
    from livery.engine.client import EngineClient
    from livery.engine.supervisor import SupervisedEngine

    return SupervisedEngine(config, lambda told, lost: EngineClient(told, progress, lost))


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
    tracing = _tracing(settings)
    loop.set_default_executor(ThreadPoolExecutor(IO_THREADS, "livery"))
    with ExitStack() as held:
        with _stages(f"loading {resolved.name}") as say:
            engine = make_engine(engine_config(settings, resolved.path), say)
            info = await engine.start()
            try:
                held.enter_context(DataFolder(settings.data_folder).serving(_known_base(settings, resolved, info)))
                parts = await _parts(settings, resolved, engine, info, say)
            except BaseException:
                await engine.stop()
                raise
        server = _Server(settings, parts, _doors(settings, parts), listener, admin, engine, tracing)
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


def _tracing(settings: Settings) -> TraceSink | None:
    """Where traces go, if anywhere. Raises SettingsError without the packages for it."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from livery.otlp import Tracing
    except ImportError:
        raise SettingsError("--otlp-endpoint needs OpenTelemetry's messages: pip install 'livery[otel]'") from None
    return Tracing(settings.otlp_endpoint)


def _doors(settings: Settings, parts: ServerParts) -> Doors:
    return Doors(
        revealed(settings.api_key),
        ring=parts.keys,
        metrics_key=revealed(settings.metrics_key),
        behind_proxy=bool(settings.root_path),
    )


def _known_base(settings: Settings, resolved: ResolvedModel, info: EngineInfo) -> KnownBase:
    """What the data folder is told of the base that is served."""
    name = _base_name(settings, resolved)
    return KnownBase(name, info.base_digest, settings.model, info.shapes, without_password(settings.registry))


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


async def _parts(
    settings: Settings,
    resolved: ResolvedModel,
    engine: Engine,
    info: EngineInfo,
    progress: Callable[[str], None],
) -> ServerParts:
    tokenizer = await asyncio.to_thread(Tokenizer.from_directory, resolved.path)
    plan = Assembly(
        base_name=_base_name(settings, resolved),
        data=DataFolder(settings.data_folder),
        registry=settings.registry,
        root=settings.adapters,
        poll=settings.poll_adapters,
        allow_source=settings.allow_source,
        keep_versions=settings.keep_versions,
        limits=Limits(max_rank=settings.max_rank),
        max_open=settings.max_open,
        max_queued_tokens=settings.max_queued_tokens,
        metrics_max_adapters=settings.metrics_max_adapters,
        usage_days=settings.usage_days,
        adapter_templates=settings.adapter_templates,
        parsers=ParserNames(settings.tool_parser, settings.reasoning_parser),
    )
    return await assemble(engine, info, tokenizer, plan, progress)


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
            create_app(
                parts.service,
                parts.management,
                doors,
                parts.usage,
                cors_origins=settings.cors_origins,
                root_path=settings.root_path,
                strict_params=settings.strict_params,
                request_timeout_s=settings.request_timeout,
                tracing=tracing,
            ),
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


def without_password(url: str | None) -> str:
    """A database URL as it may be written down."""
    if not url:
        return ""
    parts = urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{user}{parts.hostname or ''}{port}", query="").geturl()


def _base_name(settings: Settings, resolved: ResolvedModel) -> str:
    """What clients call the base; it travels in a header. Raises SettingsError."""
    name = settings.served_model_name or resolved.name
    if not name.isascii() or not name.isprintable():
        raise SettingsError(f"clients can't call a model {name!r}; give it a plain name with --served-model-name")
    return name
