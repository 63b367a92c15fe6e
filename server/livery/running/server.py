"""Puts the engine, the adapters, the service and the HTTP application together and runs them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

from rich.console import Console

from livery import descriptors, logs
from livery.beginning import ended_by_sigterm
from livery.data_folder import DataFolder
from livery.gguf_forms import widened
from livery.listening import Listener, listen, listen_for_admins
from livery.models import ResolvedModel, resolve_model
from livery.running.address_file import told_in
from livery.running.admin_listener import check_admin_doors
from livery.running.api_workers import ApiWorkers
from livery.running.engine_knobs import engine_config
from livery.running.engines import MakeEngine
from livery.running.http_server import IO_THREADS, OneProcess, Premises, ended_by_death
from livery.running.parts import (
    allowed_sources,
    base_name,
    check_adapter_folder,
    check_files,
    known_base,
    shared_blobs,
    trace_sink,
)
from livery.settings import Settings
from livery.tenancy import TenantStore, check_binding
from livery.variables import unread_variables

log = logging.getLogger("livery.serve")


def run_server(settings: Settings, make_engine: MakeEngine) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way get `drain_timeout` seconds to finish.

    Raises SettingsError, OpenDoor, ModelNotFound, ModelRefused, TokenizerRefused, DataFolderUnusable, RegistryError or
    WorkersUnable, and EngineDead when the engine ended for good: a supervisor then starts everything afresh.
    """
    with ended_by_sigterm():  # also while the model is fetched or converted, which may take an hour
        _run(settings, make_engine)


def _run(settings: Settings, make_engine: MakeEngine) -> None:
    check_adapter_folder(settings)
    shared_blobs(settings)
    allowed_sources(settings)
    descriptors.raise_limit()  # also for the engine's process and API workers, which have it from here
    folder = DataFolder(settings.data_folder)
    folder.make()
    logs.configure(settings.log_level, settings.log_format)
    for unread in unread_variables(os.environ):
        log.warning("%s", unread)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # what became of a change is said by the adapter source
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with closing(TenantStore.open(folder.tenants_url(settings.registry))) as tenants:
        keyed = settings.api_key is not None or tenants.keyed()
        check_binding(settings.host, settings.insecure_no_auth, keyed=keyed)
        check_admin_doors(settings, tenants)
    check_files(settings)
    with closing(listen(settings)) as listener, ExitStack() as stack:
        stack.enter_context(told_in(settings.address_file, listener))
        admin = listen_for_admins(settings)
        if admin is not None:
            stack.enter_context(closing(admin))
        resolved = resolve_model(settings.model)
        if settings.engine == "livery" and (note := widened(settings.model)):
            log.warning("%s", note)
        base_name(settings, resolved)
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
    loop.set_default_executor(ThreadPoolExecutor(IO_THREADS, "livery"))
    tracing = trace_sink(settings)
    with ExitStack() as held:
        with _stages(f"loading {resolved.name}") as say:
            engine = make_engine(engine_config(settings, resolved.path), say)
            info = await engine.start()
            premises = Premises(settings, resolved, engine, info, listener, admin)
            several = settings.api_workers > 1
            serving = ApiWorkers(premises) if several else OneProcess(premises, tracing)
            try:
                held.enter_context(DataFolder(settings.data_folder).serving(known_base(settings, resolved, info)))
                await serving.start(say)
            except BaseException:
                await engine.stop()
                raise
        try:
            async with ended_by_death(engine, serving.end):
                await serving.run()
        finally:
            if serving.hurried is not None:
                engine.kill()
            await serving.stop()
            await engine.stop()
        if serving.hurried is not None:
            raise SystemExit(128 + serving.hurried)


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
