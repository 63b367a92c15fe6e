"""The asyncio side of an engine in its own process: it starts it, talks to it, and notices when it dies."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from livery import models
from livery.engine import messages as m
from livery.engine.base import (
    AdapterLoadFailed,
    AdapterRef,
    EngineConfig,
    EngineDead,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    ModelRefused,
    RequestRefused,
    TokenDelta,
)
from livery_adapters.effect import AdapterEffect

STOP_SECONDS = 10.0  # how long a stopping engine may take before it is killed
PING_SECONDS = 30.0  # longest step that still counts as progress


class EngineClient:
    """An Engine in a child process, behind a private unix socket. Use from one event loop."""

    def __init__(self, config: EngineConfig, progress: Callable[[str], None] = lambda _: None) -> None:
        self._config = config
        self._progress = progress
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._folder: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(m.FromEngine)
        self._streams: dict[str, asyncio.Queue[TokenDelta | Exception]] = {}
        self._loads: dict[str, list[asyncio.Future[AdapterEffect | None]]] = {}
        self._pings: dict[int, asyncio.Future[EngineStats]] = {}
        self._calls = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._dead: str | None = None  # why nothing works any more
        self._death = asyncio.Event()
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The engine's process, once started."""
        return self._process.pid if self._process else None

    # -- Engine --------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        config = self._config
        if not config.base_digest:
            self._progress("hashing the base model (once per file)")
            digest = await asyncio.to_thread(models.base_digest, Path(config.model_path))
            config = msgspec.structs.replace(config, base_digest=digest)
        try:
            return await self._launch(config)
        except BaseException:
            await self.stop()
            raise

    async def _launch(self, config: EngineConfig) -> EngineInfo:
        self._folder = Path(tempfile.mkdtemp(prefix="livery-"))  # mode 0700: nobody else reaches the socket
        address = f"ipc://{self._folder}/engine"
        self._socket.bind(address)
        self._progress("starting the engine's process")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "livery.engine.process", address, str(os.getpid())),
            env=_environment(config),
            start_new_session=True,  # Ctrl-C goes to the terminal's group; the parent decides when the engine stops
        )
        exited = asyncio.create_task(self._process.wait())
        # A socket without a peer never takes a message, so sending must not outlast the process either.
        start = asyncio.ensure_future(self._socket.send(self._encoder.encode(m.Start(config))))
        try:
            info = await self._await_ready(exited)
        finally:
            start.cancel()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch(exited))]
        return info

    async def stop(self) -> None:
        self._stopping = True
        self._fail_all("the engine was stopped")
        if self._process is not None and self._process.returncode is None:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._send(m.Stop())
                    await self._process.wait()
            except (TimeoutError, EngineDead):  # it hangs, or never got as far as listening
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def died(self) -> str:
        await self._death.wait()
        return self._dead or ""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        self._check_alive()
        if request.request_id in self._streams:
            raise RequestRefused(f"request id {request.request_id!r} is already in use")
        stream: asyncio.Queue[TokenDelta | Exception] = asyncio.Queue()
        self._streams[request.request_id] = stream
        finished = False
        try:
            await self._send(m.Submit(request))
            while not finished:
                item = await stream.get()
                if isinstance(item, Exception):
                    finished = True
                    raise item
                finished = item.finish_reason is not None
                yield item
        finally:
            del self._streams[request.request_id]
            if not finished:
                await self.abort(request.request_id)

    async def abort(self, request_id: str) -> None:
        with suppress(EngineDead):  # then there is nothing left to abort
            await self._send(m.Abort(request_id))

    async def load_adapter(self, adapter: AdapterRef) -> AdapterEffect | None:
        self._check_alive()
        done: asyncio.Future[AdapterEffect | None] = asyncio.get_running_loop().create_future()
        self._loads.setdefault(adapter.digest, []).append(done)
        await self._send(m.Load(adapter))
        return await done

    async def unload_adapter(self, digest: str) -> None:
        with suppress(EngineDead):
            await self._send(m.Unload(digest))

    async def keep_adapters(self, digests: tuple[str, ...]) -> None:
        with suppress(EngineDead):
            await self._send(m.Keep(digests))

    async def stats(self) -> EngineStats:
        self._check_alive()
        call = next(self._calls)
        pong: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._pings[call] = pong
        try:
            await self._send(m.Ping(call))
            return await asyncio.wait_for(pong, PING_SECONDS)
        except TimeoutError as error:
            raise EngineDead(f"the engine's loop has not answered for {PING_SECONDS:.0f} s") from error
        finally:
            self._pings.pop(call, None)

    # -- inside --------------------------------------------------------------------------------------

    async def _send(self, message: m.ToEngine) -> None:
        """Never waits: queues are unbounded (the service bounds open requests), so failing means nobody listens."""
        try:
            await self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            raise EngineDead(self._dead or "the engine process no longer listens") from None

    def _check_alive(self) -> None:
        """Raise a fresh EngineDead: one instance raised by many would gather all their tracebacks."""
        if self._dead is not None:
            raise EngineDead(self._dead)

    async def _await_ready(self, exited: asyncio.Task[int]) -> EngineInfo:
        while True:
            received = asyncio.ensure_future(self._socket.recv())
            await asyncio.wait({received, exited}, return_when=asyncio.FIRST_COMPLETED)
            if not received.done():
                received.cancel()
                raise EngineDead(f"the engine process ended with status {exited.result()} while it was starting")
            match self._decoder.decode(received.result()):
                case m.Progress(text):
                    self._progress(text)
                case m.Ready(info):
                    return info
                case m.Refused(reason):
                    raise ModelRefused(reason)

    async def _receive(self) -> None:
        try:
            while True:
                self._take(self._decoder.decode(await self._socket.recv()))
        except msgspec.DecodeError as error:
            self._fail_all(f"a message of the engine could not be read: {error}")

    def _take(self, message: m.FromEngine) -> None:
        match message:
            case m.Step(deltas, loads):
                for delta in deltas:
                    if delta.request_id in self._streams:
                        self._streams[delta.request_id].put_nowait(delta)
                for outcome in loads:
                    self._settle_load(outcome)
            case m.Rejected(request_id, reason):
                if request_id in self._streams:
                    self._streams[request_id].put_nowait(RequestRefused(reason))
            case m.Pong(call, stats):
                if call in self._pings and not self._pings[call].done():
                    self._pings[call].set_result(stats)

    async def _watch(self, exited: asyncio.Task[int]) -> None:
        status = await exited
        if not self._stopping:
            self._fail_all(f"the engine process ended with status {status}; restart the server")

    def _settle_load(self, outcome: m.LoadOutcome) -> None:
        for done in self._loads.pop(outcome.digest, []):
            if done.done():
                continue
            if outcome.error is None:
                done.set_result(outcome.effect)
            else:
                done.set_exception(AdapterLoadFailed(outcome.error, outcome.code))

    def _fail_all(self, reason: str) -> None:
        self._dead = self._dead or reason
        self._death.set()
        for stream in self._streams.values():
            stream.put_nowait(EngineDead(reason))
        for done in itertools.chain.from_iterable(self._loads.values()):
            _fail(done, EngineDead(reason))
        for pong in self._pings.values():
            _fail(pong, EngineDead(reason))
        self._loads.clear()


def _fail(waiting: asyncio.Future[Any], error: Exception) -> None:
    if not waiting.done():
        waiting.set_exception(error)
        waiting.exception()  # mark as seen: its caller may be gone


def _environment(config: EngineConfig) -> dict[str, str]:
    """The child's environment, settled before it imports torch.

    Passive waiting: with the default spin, OpenMP threads and one busy neighbour on few cores slow each other
    down several times over.
    """
    env = dict(os.environ)
    env.setdefault("OMP_WAIT_POLICY", "passive")
    if config.threads:
        env["OMP_NUM_THREADS"] = str(config.threads)
    return env
