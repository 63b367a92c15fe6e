"""One of the processes that serve HTTP over a server's engine (`livery serve --api-workers N`).

Run as `python -m livery.running.api_worker DESCRIPTOR` by the server's first process, over whose link it is told
everything else: the settings, what the engine turned out to be, the sockets that it inherited.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from livery import logs
from livery.data_folder import DataFolderUnusable
from livery.engine.base import EngineDead
from livery.listening import inherited
from livery.models import ResolvedModel
from livery.running.http_server import IO_THREADS, OneProcess, Premises, ended_by_death
from livery.running.parts import trace_sink
from livery.settings import Settings, SettingsError
from livery.tokenizer_files import TokenizerRefused
from livery.workers import messages as m
from livery.workers.attached import ALONE, AttachedEngine
from livery.workers.connections import Connections
from livery.workers.gatekeeper import AskedGate
from livery.workers.link import Link
from livery.workers.survey import ToldCounting
from livery_adapters.registry import RegistryError

log = logging.getLogger("livery.workers")

REFUSED = (SettingsError, TokenizerRefused, DataFolderUnusable, RegistryError, NotADirectoryError)
ALONE_S = 5.0  # that a worker may take to end when its parent is gone


class Worker:
    """One worker's life."""

    def __init__(self) -> None:
        self.link = Link(m.ToWorker, self._take, self._lost)
        self._begin: asyncio.Future[m.Begin] = asyncio.get_running_loop().create_future()
        self._beside: set[asyncio.Task[None]] = set()
        self._engine: AttachedEngine
        self._gate, self._counting = AskedGate(self.link), ToldCounting(self.link)
        self._process: OneProcess | None = None
        self._drained = False

    async def beat(self) -> None:
        """Say that the loop gets on, for as long as it does."""
        while True:
            self.link.send(m.Alive())
            await asyncio.sleep(m.BEAT_S)

    async def serve(self) -> None:
        """From the first message to the end. Raises REFUSED, and EngineDead when engine or parent are gone."""
        begin = await self._begin
        settings = Settings.model_validate(begin.settings)
        logs.configure(settings.log_level, settings.log_format, begin.number)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(IO_THREADS, "livery"))
        self._engine = AttachedEngine(self.link, begin.number, begin.info)
        connections = Connections(begin.connections, settings.api_workers)
        process = OneProcess(
            Premises(
                settings,
                ResolvedModel(begin.model_name, Path(begin.model_path)),
                self._engine,
                begin.info,
                inherited(settings, begin.listener),
                None if begin.admin is None else inherited(settings, begin.admin),
            ),
            trace_sink(settings),
            gate=self._gate,
            counting=self._counting,
            number=begin.number,
            started=lambda: self.link.send(m.Serving()),
            elsewhere=partial(connections.tell, begin.number),
        )
        self._process = process
        try:
            async with ended_by_death(self._engine, process.end):
                await process.start(lambda _: None)
                await process.run()
        finally:
            await process.stop()
            await self._engine.stop()
        if process.hurried is not None:
            raise SystemExit(128 + process.hurried)

    def _take(self, message: Any) -> None:  # noqa: ANN401  (one of m.ToWorker)
        match message:
            case m.Begin():
                self._begin.set_result(message)
            case m.Deltas() | m.Failed():
                self._engine.take(message)
            case m.Tell(number) if self._counting.made is not None:
                self._counting.made.tell(number)
            case m.Incoming(names):
                self._counting.hear(names)
            case m.Renew() if self._process is not None:
                self._run(self._renew(self._process, message))
            case m.Used():
                self._gate.take(message)
            case m.Drain(number):
                self._drain(number)
            case m.Announce() if self._process is not None:
                self._run(self._process.announce())
            case m.EngineEnded(reason) if self._process is not None:
                self._engine.end(reason)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _renew(self, process: OneProcess, told: m.Renew) -> None:
        with suppress(RegistryError, SQLAlchemyError, OSError):  # who follows the keys says so, and tries again
            await process.renew(told.names, keys=told.keys, superseded=told.superseded)
        self.link.send(m.Renewed(told.number))

    def _drain(self, number: int) -> None:
        if self._process is None:
            os._exit(128 + number)  # nothing is under way
        if self._drained:
            self._process.hurry(number)
        self._drained = True
        self._process.end()

    def _lost(self) -> None:
        """The parent is gone, and the engine with it: there is nothing left to serve."""
        if self._process is None:
            os._exit(1)
        timer = threading.Timer(ALONE_S, os._exit, (1,))  # whatever holds up the end
        timer.daemon = True
        timer.start()
        self._engine.end(ALONE)


async def _work(end: socket.socket) -> None:
    worker = Worker()
    await worker.link.open(end)
    beating = asyncio.create_task(worker.beat(), name="api-worker-beat")
    try:
        await worker.serve()
    except REFUSED as refused:
        worker.link.send(m.Unable(str(refused)))
    finally:
        beating.cancel()
        worker.link.close()


def main() -> None:
    logs.configure("warning", "text")  # until it is told otherwise
    for number in (signal.SIGINT, signal.SIGTERM):  # until there is a server that stops in good order
        signal.signal(number, signal.SIG_DFL)
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)
    try:
        asyncio.run(_work(end))
    except EngineDead as dead:
        log.error("this worker ends: %s", dead)
        sys.exit(1)


if __name__ == "__main__":
    main()
