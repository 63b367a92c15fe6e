"""A whole server without a listener of its own: engine, adapters, tenants and the API's application, in this process.

    server = await ReplicaServer.start(settings)
    async for message in server.answer(request, asked, pull): ...
    await server.stop(patience_s)

What puts requests in is somebody else's affair; knows no Ray.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from livery import descriptors, logs
from livery.api.edges import EdgeConfig
from livery.assembly import ServerParts
from livery.data_folder import DataFolder
from livery.engine.base import Engine, EngineError
from livery.models import resolve_model
from livery.running.admin_listener import GRACE_S, BesideServer
from livery.running.engine_knobs import engine_config
from livery.running.engines import MakeEngine, engine_of
from livery.running.http_server import IO_THREADS
from livery.running.parts import (
    application,
    base_name,
    check_adapter_folder,
    known_base,
    server_doors,
    server_parts,
    trace_sink,
    without_password,
)
from livery.scale.ray_config import SLOT, data_path
from livery.scale.ray_exchange import Exchange, Forwarded, Head, Pull, Running, Said
from livery.scale.ray_routing import Announced, adapter_id
from livery.settings import Settings, SettingsError
from livery.spans import TraceSink
from livery.tenancy import TenantStore
from livery.vitals import Readiness

log = logging.getLogger("livery.replica")

MOST_SLOTS = 1024


class ReplicaServer:
    """One replica's server. Made by `start`; use from one event loop."""

    def __init__(
        self, app: FastAPI, parts: ServerParts, engine: Engine, tracing: TraceSink | None, held: ExitStack
    ) -> None:
        self.app = app
        self._parts = parts
        self._engine = engine
        self._tracing = tracing
        self._held = held
        self._running = Running()
        self._readiness = Readiness(engine, parts.service.adapters.vitals)
        self._own: BesideServer | None = None
        self._answering: asyncio.Task[None] | None = None
        self.announced = Announced()

    @classmethod
    async def start(cls, settings: Settings, make_engine: MakeEngine | None = None) -> ReplicaServer:
        """Load the model and put a server together over it.

        Raises what `livery serve` ends with: SettingsError, ModelNotFound, ModelRefused, TokenizerRefused,
        DataFolderUnusable, RegistryError.
        """
        descriptors.raise_limit()
        logs.configure(settings.log_level, settings.log_format)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(IO_THREADS, "livery"))
        await asyncio.to_thread(check_adapter_folder, settings)
        with ExitStack() as stack:
            settings = settings.model_copy(update={"data": _own_folder(data_path(settings), stack)})
            folder = DataFolder(settings.data_folder)
            folder.make()
            await asyncio.to_thread(_check_doors, settings, folder)
            tracing = trace_sink(settings)
            resolved = await asyncio.to_thread(resolve_model, settings.model)
            base_name(settings, resolved)
            make_engine = make_engine or engine_of(settings)
            engine = make_engine(engine_config(settings, resolved.path), _say)
            info = await engine.start()
            try:
                stack.enter_context(folder.serving(known_base(settings, resolved, info)))
                parts = await server_parts(settings, resolved, engine, info, _say)
            except BaseException:
                await engine.stop()
                raise
            doors = server_doors(
                settings, parts, behind_proxy=True
            )  # Ray passes on what others ask, and doesn't say so
            app = application(settings, parts, doors, tracing)
            return cls(app, parts, engine, tracing, stack.pop_all())

    async def answer(self, request: Forwarded, told: str, pull: Pull) -> AsyncGenerator[Said]:
        """The API's answer; `told` is what the request was routed by. Raises AnswerCutShort."""
        exchange = Exchange(self.app, request, pull, self._running)
        self.announced.begin(told)
        try:
            async with aclosing(exchange.messages()) as messages:
                async for message in messages:
                    if isinstance(message, Head):
                        message = replace(message, adapter=self._id(_model(exchange.scope)))
                    yield message
        finally:
            model = _model(exchange.scope)
            self.announced.end(told, None if model == self._parts.service.base_name else model)

    def _id(self, model: str | None) -> str | None:
        if model is None:
            return None
        return "" if model == self._parts.service.base_name else adapter_id(model)

    async def ids(self) -> frozenset[str]:
        """The routing ids of what is under way or in memory; of what is under way alone while the engine says nothing.

        "In memory" is either tier, the device's or the host's: the latter costs a copy and no fetching.
        """
        try:
            stats = await self._engine.stats()
        except EngineError:
            return self.announced.ids(())
        return self.announced.ids(self._parts.service.metrics.in_memory(stats))

    @property
    def ongoing(self) -> int:
        """Requests under way."""
        return len(self._running.tasks)

    async def check(self) -> None:
        """Raises NotReady where nothing but a new replica helps."""
        await self._readiness.health()

    async def listen(self, host: str, first_port: int) -> None:
        """Answer on a port of this replica's own as well, the first that is free. Raises SettingsError."""
        for port in range(first_port, min(first_port + MOST_SLOTS, 65536)):
            with suppress(OSError):
                bound = socket.create_server((host, port))
                break
        else:
            raise SettingsError(f"no port from {first_port} on is free on {host}; give another replica_port")
        log.info("this replica answers on http://%s:%d", host, port)
        self._own = BesideServer(EdgeConfig(self.app, timeout_graceful_shutdown=GRACE_S))
        self._answering = asyncio.create_task(self._own.serve(sockets=[bound]))

    async def stop(self, patience_s: float) -> None:
        """Let requests under way end, then stop everything."""
        self._parts.service.drain()
        await self._running.end(patience_s)
        if self._own is not None and self._answering is not None:
            self._own.should_exit = True
            await self._answering
        await self._parts.stop()
        await self._engine.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._held.close()


def _check_doors(settings: Settings, folder: DataFolder) -> None:
    """Raises SettingsError where strangers could ask without a key: where Ray listens, a replica doesn't know."""
    with closing(TenantStore.open(folder.tenants_url(settings.registry))) as tenants:
        if not settings.insecure_no_auth and settings.api_key is None and not tenants.keyed():
            raise SettingsError(
                "no key is asked for, and whoever reaches the address where Ray Serve listens could use this server: "
                f"make a key with `livery keys create --tenant NAME {_where(settings)}`, give api_key (or "
                "LIVERY_API_KEY), or accept that with insecure_no_auth=true"
            )


def _where(settings: Settings) -> str:
    """The option that says where keys are, without a URL's password."""
    return f"--registry {without_password(settings.registry)}" if settings.registry else f"--data {settings.data}"


def _own_folder(path: Path, stack: ExitStack) -> Path:
    """The path with the first number that no other replica of this machine has. Raises SettingsError."""
    if SLOT not in str(path):
        return path
    for slot in range(MOST_SLOTS):
        folder = Path(str(path).replace(SLOT, str(slot)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / "replica.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(f"data folder {folder} can't be used: {error.strerror}; choose another data") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        stack.callback(os.close, handle)
        return folder
    raise SettingsError(f"data {path}: {MOST_SLOTS} replicas on one machine have a folder there already")


def _model(scope: dict[str, Any]) -> str | None:
    """The full name of what a request ran on, as the API notes it; None where it ran on nothing."""
    record = scope.get("state", {}).get("record")
    if record is None:
        return None
    name, _, _ = record.served_by.rpartition("@")
    return name or None


def _say(stage: str) -> None:
    log.info("starting: %s", stage)
