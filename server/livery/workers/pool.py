"""The lives of a server's workers: started, started anew when they end by themselves, and ended with the server.

    pool = Pool(hub, settings)
    await pool.start()              # all of them serve; WorkersUnable
    await pool.done()               # until every one has ended, which `drain` and `end` ask for
    pool.kill()

A worker that ends takes its own streams with it and nothing else: its desk gives back what it held, and connections
that nobody accepted yet wait in the socket that all of them share. One whose loop says nothing for too long is ended,
as the engine is: whatever it waits for, its clients would wait with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from livery.engine.pulse import judge
from livery.engine.starvation import Silence
from livery.engine.supervisor import RestartBudget
from livery.metrics.processes import ProcessorTime
from livery.survey import House, Process
from livery.workers import messages as m
from livery.workers.connections import Connections, make
from livery.workers.hub import Desk, Hub

log = logging.getLogger("livery.workers")

PROGRAM = "livery.running.api_worker"
ENDED_S = 5.0  # that a worker may take to end once its link is closed
LATE_S = 12.0  # that workers may take beyond the drain timeout until they are ended
STARTING_S = 60.0  # of silence, until it serves: a worker is silent while Python reads its modules

Begin = Callable[[int, int], m.Begin]  # what a worker of that number is told first, given the descriptor of Connections


class WorkersUnable(Exception):
    """The server's workers can't serve; the message says why."""


class Pool:
    """Use from one event loop."""

    def __init__(
        self, hub: Hub, begin: Begin, processes: int, descriptors: Sequence[int], *, hang_s: float, drain_s: float
    ) -> None:
        """`descriptors` are what every worker inherits beside its link. `hang_s`: of silence, after which one that
        serves is ended; `drain_s`: that requests under way have once it is told to stop.
        """
        self._hub, self._begin = hub, begin
        self._hang_s, self._drain_s = hang_s, drain_s
        self._shared = make(processes)
        self._connections = Connections(self._shared, processes)
        self._descriptors = (*descriptors, self._shared)
        self._lives = [Life(number) for number in range(processes)]
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._began = time.perf_counter()
        self._processor_time = ProcessorTime()
        hub.house = self.house

    def house(self) -> House:
        """The server's processes now."""
        pids = (os.getpid(), *(life.pid for life in self._lives if life.pid))
        workers = tuple(Process(life.number, life.pid, life.serving, life.restarts) for life in self._lives)
        return House(self._began, pids, workers, self._processor_time.look(pids))

    async def start(self) -> None:
        """Raises WorkersUnable where one of them can't serve; the others are ended then."""
        self._tasks = [asyncio.create_task(self._keep(life), name=f"api-worker-{life.number}") for life in self._lives]
        served, stopping = asyncio.create_task(self._all_serve()), asyncio.create_task(self._stopped())
        try:
            await asyncio.wait([served, stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (served, stopping):
                task.cancel()
        if not served.done():
            self.drain(signal.SIGTERM)
        if reason := next((life.unable for life in self._lives if life.unable), ""):
            await self.done()
            raise WorkersUnable(reason)
        self._lives[0].send(m.Announce())  # to no avail where it was told to stop meanwhile

    def drain(self, sig: int) -> None:
        """The server was told to stop: workers finish what is under way. A second time: they end now."""
        self._end(m.Drain(sig))

    def end(self, reason: str) -> None:
        """The engine is at its end for good."""
        self._end(m.EngineEnded(reason))

    def kill(self) -> None:
        """End all of them without waiting for anything; none is started anew."""
        self._stopping.set()
        for life in self._lives:
            life.kill()

    async def done(self) -> None:
        """Wait for the end of every worker."""
        await asyncio.gather(*self._tasks)

    async def _all_serve(self) -> None:
        for life in self._lives:
            await life.served.wait()

    async def _stopped(self) -> None:
        await self._stopping.wait()

    def _end(self, last: m.Drain | m.EngineEnded) -> None:
        """What doesn't serve yet has nothing to finish, and may be far from a point where it could hear this."""
        if not self._stopping.is_set():
            asyncio.get_running_loop().call_later(self._drain_s + LATE_S, self._late)
        self._stopping.set()
        for life in self._lives:
            if life.serving:
                life.send(last)
            else:
                life.kill()

    def _late(self) -> None:
        for life in self._lives:
            if life.pid:
                log.error("API worker %d didn't end in time after it was told to, and is ended", life.number)
                life.kill()

    async def _keep(self, life: Life) -> None:
        """Have a worker of this number, until the server ends."""
        budget, first = RestartBudget(sys.maxsize), True
        while not self._stopping.is_set():
            ended = await self._live(life)
            if self._stopping.is_set():
                return
            said = life.desk.unable if life.desk is not None else ""
            if first and not life.served.is_set():
                life.unable = said or f"API worker {life.number} ended with {ended} before it served; see the log"
                return self.drain(signal.SIGTERM)
            first, pause = False, budget.pause(time.monotonic()) or 0.0
            budget.take(time.monotonic())
            life.restarts += 1
            why = f"{ended}: {said}" if said else ended
            log.error("API worker %d ended with %s, and is started anew in %.0f s", life.number, why, pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _live(self, life: Life) -> str:
        """One life of a worker; how it ended."""
        mine, theirs = socket.socketpair()
        with theirs:
            try:
                life.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno())),
                    pass_fds=(theirs.fileno(), *self._descriptors),
                    start_new_session=True,  # Ctrl-C goes to the terminal's group; the parent says when workers stop
                )
            except OSError as error:
                mine.close()
                return f"no process ({error.strerror or error})"
        life.desk = desk = self._hub.desk(life.number)
        await desk.link.open(mine)
        if self._stopping.is_set():
            life.kill()
        beside = [
            asyncio.create_task(work) for work in (self._tell(life, desk), life.notice(desk), self._feel(life, desk))
        ]
        try:
            await desk.gone.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(ENDED_S):
                    return _how(await life.process.wait())
            life.kill()
            return _how(await life.process.wait())
        finally:
            for task in beside:
                task.cancel()
            self._connections.tell(life.number, 0)

    async def _tell(self, life: Life, desk: Desk) -> None:
        """The first worker takes in the adapter folder before it serves, and the others begin after it: nobody is told
        that an adapter isn't there which only hasn't been read yet.
        """
        first = self._lives[0]
        if life is not first:
            await first.served.wait()
        desk.link.send(self._begin(life.number, self._shared))
        desk.link.send(self._hub.incoming(desk))

    async def _feel(self, life: Life, desk: Desk) -> None:
        """End a worker that hangs. What it had no core for isn't held against it, nor what this process had none for.

        Its clients see their connections end, and those who haven't been answered yet may ask again.
        """
        silence, hang = Silence(Path(f"/proc/{life.pid}/task")), ""
        while not hang:
            await asyncio.sleep(m.BEAT_S)
            if desk.spoke():
                silence.ends()
            else:
                silence.goes_on(m.BEAT_S)
            patience = self._hang_s if life.serving else max(self._hang_s, STARTING_S)
            hang = judge(silence.lasts_s, None, patience, silence.starved_s).hang
        log.error("API worker %d hangs and is ended: %s", life.number, hang)
        life.kill()


class Life:
    """A worker's number, and the process that has it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self.desk: Desk | None = None
        self.served = asyncio.Event()  # once at least
        self.unable = ""
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Of its process, 0 where there is none now."""
        return self.process.pid if self.process is not None and self.process.returncode is None else 0

    @property
    def serving(self) -> bool:
        return self.desk is not None and self.desk.serving.is_set() and not self.desk.gone.is_set()

    async def notice(self, desk: Desk) -> None:
        await desk.serving.wait()
        self.served.set()

    def send(self, message: m.Announce | m.Drain | m.EngineEnded) -> None:
        if self.desk is not None:
            self.desk.link.send(message)

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # it has ended already
                os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session of its own


def _how(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
