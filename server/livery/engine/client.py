"""The asyncio side of an engine in its own process: it starts it, talks to it, and notices when it dies."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from livery.engine import messages as m
from livery.engine.base import (
    NOBODY,
    AdapterLoadFailed,
    AdapterRef,
    Asker,
    EngineConfig,
    EngineDead,
    EngineError,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    ModelRefused,
    RequestRefused,
    TokenDelta,
)
from livery.engine.figures import PromptRead
from livery.engine.hashed import with_digest
from livery.engine.pulse import BEAT_S, Beat, Judgement, judge
from livery.engine.starvation import Silence
from livery.engine.streams import Streams
from livery.scratch import Scratch
from livery_adapters.effect import AdapterEffect

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0  # how long a stopping engine may take before it is killed
ANSWER_SECONDS = 0.5  # how long an engine may take to answer before its beats are asked


class EngineClient:
    """An Engine in a child process, behind a private unix socket. Use from one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        progress: Callable[[str], None] = lambda _: None,
        lost: Callable[[str], EngineError] = EngineDead,
    ) -> None:
        """`lost` makes what requests are told once the engine is lost, of the reason."""
        self._config = config
        self._progress = progress
        self._lost = lost
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._pulse = self._context.socket(zmq.PULL)
        self._pulse.setsockopt(zmq.CONFLATE, 1)  # of several beats the newest is what counts
        self._scratch: Scratch | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(m.FromEngine)
        self._beat_decoder = msgspec.msgpack.Decoder(Beat)
        self._judgement = Judgement()
        self._streams = Streams(self._submit, self.abort)
        self._loads: dict[str, list[asyncio.Future[AdapterEffect | None]]] = {}
        self._counts: dict[int, asyncio.Future[EngineStats]] = {}
        self._ping: asyncio.Future[None] | None = None  # the latest
        self._calls = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._dead: str | None = None  # why nothing works any more
        self._death = asyncio.Event()
        self._serving = False
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The engine's process, once started."""
        return self._process.pid if self._process else None

    # -- Engine --------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        try:
            return await self._launch(await with_digest(self._config, self._progress))
        except BaseException:
            await self.stop()
            raise

    async def _launch(self, config: EngineConfig) -> EngineInfo:
        # Of mode 0700: nobody else reaches the socket.
        self._scratch = await asyncio.to_thread(Scratch, "livery-engine-")
        address = f"ipc://{self._scratch.path}/engine"
        self._socket.bind(address)
        self._pulse.bind(m.pulse_address(address))
        self._progress("starting the engine's process")
        environment = _environment(config)
        one_of_several = config.device.startswith("cuda:")  # the child sees that one only, and so as its first
        told = msgspec.structs.replace(config, device="cuda") if one_of_several else config
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "livery.engine.process", address, str(os.getpid())),
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the terminal's group; the parent decides when the engine stops
        )
        exited = asyncio.create_task(self._process.wait())
        # A socket without a peer never takes a message, so sending must not outlast the process either.
        start = asyncio.ensure_future(self._socket.send(self._encoder.encode(m.Start(told))))
        try:
            info = await self._await_ready(exited)
        except ModelRefused as error:
            if not one_of_several:
                raise
            raise ModelRefused(f"--device {config.device}: {error}") from error
        finally:
            start.cancel()
        if one_of_several:
            info = msgspec.structs.replace(info, device=config.device)
        self._serving = True
        work = {"engine-messages": self._receive(), "engine-exit": self._watch(exited), "engine-pulse": self._feel()}
        self._tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in work.items()]
        for task in self._tasks:
            task.add_done_callback(self._check_task)
        return info

    async def stop(self) -> None:
        self._stopping = True
        well = self._serving and self._dead is None
        self._fail_all("the engine was stopped")
        if self._process is not None and self._process.returncode is None:
            await self._end_process(self._process, well=well)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def kill(self) -> None:
        """End the process, and what it has started, without waiting for anything."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # it has ended already
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own

    async def _end_process(self, process: asyncio.subprocess.Process, *, well: bool) -> None:
        """Ask one that is well to stop; one that hangs, or never got as far as listening, is killed."""
        if well:
            with suppress(TimeoutError, EngineError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._send(m.Stop())
                    await process.wait()
        self.kill()
        await process.wait()

    async def died(self) -> str:
        await self._death.wait()
        return self._dead or ""

    def generate(self, request: GenerationRequest, read: PromptRead | None = None) -> AsyncIterator[TokenDelta]:
        return self._streams.generate(request, read)

    async def _submit(self, request: GenerationRequest) -> None:
        self._check_alive()
        await self._send(m.Submit(request))

    async def abort(self, request_id: str) -> None:
        with suppress(EngineError):  # then there is nothing left to abort
            await self._send(m.Abort(request_id))

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        self._check_alive()
        done: asyncio.Future[AdapterEffect | None] = asyncio.get_running_loop().create_future()
        self._loads.setdefault(adapter.digest, []).append(done)
        await self._send(m.Load(adapter, asker))
        return await done

    async def unload_adapter(self, digest: str) -> None:
        with suppress(EngineError):
            await self._send(m.Unload(digest))

    async def keep_adapters(self, digests: tuple[str, ...]) -> None:
        with suppress(EngineError):
            await self._send(m.Keep(digests))

    async def stats(self) -> EngineStats:
        self._check_alive()
        call = next(self._calls)
        counted: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._counts[call] = counted
        try:
            await self._send(m.Count(call))
            return await counted
        finally:
            self._counts.pop(call, None)

    async def ready(self) -> bool:
        self._check_alive()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._answered()
        except TimeoutError:  # in a long step, or reading what many requests sent: its beats say whether it gets on
            self._check_alive()
            return self._judgement.ready
        return True

    # -- inside --------------------------------------------------------------------------------------

    async def _answered(self) -> None:
        """Wait for the answer to the ping that is under way, whoever asked for it, or else to a new one."""
        if self._ping is None or self._ping.done():
            ping = self._ping = asyncio.get_running_loop().create_future()
            try:
                await self._send(m.Ping())
            except EngineError as error:
                _fail(ping, error)
        await asyncio.shield(self._ping)

    async def _send(self, message: m.ToEngine) -> None:
        """Never waits: queues are unbounded (the service bounds open requests), so failing means nobody listens."""
        try:
            await self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            raise self._lost(self._dead or "the engine process no longer listens") from None

    def _check_alive(self) -> None:
        """Raise a fresh error: one instance raised by many would gather all their tracebacks."""
        if self._dead is not None:
            raise self._lost(self._dead)

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
                    self._streams.take(delta)
                for outcome in loads:
                    self._settle_load(outcome)
            case m.Rejected(request_id, reason):
                self._streams.fail(request_id, RequestRefused(reason))
            case m.Pong():
                if self._ping is not None and not self._ping.done():
                    self._ping.set_result(None)
            case m.Counted(call, stats):
                if call in self._counts and not self._counts[call].done():
                    self._counts[call].set_result(stats)

    async def _watch(self, exited: asyncio.Task[int]) -> None:
        status = await exited
        if not self._stopping:
            self._fail_all(f"the engine process ended with status {status}")

    async def _feel(self) -> None:
        """Follow the beats; an engine that hangs is lost, and its process is killed."""
        assert self._process is not None
        now = asyncio.get_running_loop().time
        beat, silence, looked = None, Silence(Path(f"/proc/{self._process.pid}/task")), now()
        while not self._judgement.hang:
            came = await self._pulse.poll(int(1000 * BEAT_S))
            before, looked = looked, now()
            if came:
                beat = self._beat_decoder.decode(await self._pulse.recv())
                silence.ends()
            else:
                silence.goes_on(min(looked - before, 2 * BEAT_S))  # in longer gaps it is this process that didn't run
            self._judgement = judge(silence.lasts_s, beat, self._config.hang_s, silence.starved_s)
        if not self._stopping:
            self._fail_all(f"the engine hangs: {self._judgement.hang}")
            self.kill()

    def _check_task(self, task: asyncio.Task[None]) -> None:
        """Without any one of its tasks an engine would only seem to work: it is lost, like one that crashed."""
        error = None if task.cancelled() else task.exception()
        if self._stopping or (error is None and not task.cancelled()):
            return
        log.critical("the server's %s ended by itself", task.get_name(), exc_info=error)
        self._fail_all(f"the server's {task.get_name()} ended by itself ({error or 'cancelled'})")
        self.kill()

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
        self._streams.fail_all(lambda: self._lost(reason))
        for done in itertools.chain.from_iterable(self._loads.values()):
            _fail(done, self._lost(reason))
        for counted in self._counts.values():
            _fail(counted, self._lost(reason))
        if self._ping is not None:
            _fail(self._ping, self._lost(reason))
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
    if config.device.startswith("cuda:"):
        env["CUDA_VISIBLE_DEVICES"] = _visible_device(config.device, env.get("CUDA_VISIBLE_DEVICES"))
    return env


def _visible_device(device: str, visible: str | None) -> str:
    """The one device of `cuda:N`: the N-th of those that are visible here, by index or UUID. Raises ModelRefused.

    Kernels and graphs are launched on a process's current device, so the engine's process gets no other.
    """
    index = int(device.removeprefix("cuda:"))
    if visible is None:
        return str(index)
    found = list(itertools.takewhile(lambda one: one not in ("", "-1"), (one.strip() for one in visible.split(","))))
    if index >= len(found):
        raise ModelRefused(
            f"--device {device} is beyond CUDA_VISIBLE_DEVICES={visible}, which shows {len(found)} devices: give one "
            "of these, counted from cuda:0, or show more"
        )
    return found[index]
