"""vLLM's engine as processes beside this one: started, called, felt, and ended. One for each start.

AsyncLLM runs here and its EngineCore in a process of its own. What calls it waits for an answer or for its end,
whichever comes first: vLLM leaves calls to a process that is gone without one.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from livery.engine.base import EngineDead, EngineError
from livery.engine.vllm_watch import StepCounts

log = logging.getLogger(__name__)
_TOLD_AT_ITS_END = logging.getLogger("vllm.v1.engine.async_llm")
T = TypeVar("T")

LOOK_S = 0.25  # how often it is looked at
PING_AFTER_S = 1.0  # of silence: an idle engine says nothing by itself
READY_S = 5.0  # of silence: a step takes no longer as a rule
STOP_S = 5.0  # how long it may take to end before it is killed
HANGS = 15.0  # times `--hang-timeout`: what vLLM is in the middle of doesn't show from outside


class CallFailed(EngineError):
    """vLLM refused what it was asked to do; the message is its own."""


class VllmProcess:
    """AsyncLLM and its processes. Use from one event loop."""

    def __init__(self, counts: StepCounts, hang_s: float, lost: Callable[[str], EngineError] = EngineDead) -> None:
        """`lost` makes what callers are told once it is lost, of the reason."""
        self._counts, self._hang_s, self._lost = counts, hang_s * HANGS, lost
        self._llm: Any = None
        self._others: set[int | None] = set()
        self._stopping = False
        self._reason = ""
        self._ended = asyncio.Event()
        self._silent_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def llm(self) -> Any:  # noqa: ANN401  (vLLM's AsyncLLM)
        """Raises what callers are told once it is lost."""
        self.check()
        return self._llm

    @property
    def pid(self) -> int:
        """Of the engine's process; 0 where there is none."""
        return next((process.pid or 0 for process in self._processes()), 0)

    async def launch(self, build: Callable[[], Any]) -> None:
        """Start it by `build`, which makes the AsyncLLM and takes minutes, on a thread. Raises what that raises."""
        _TOLD_AT_ITS_END.disabled = False
        self._others = {process.pid for process in multiprocessing.active_children()}
        building = asyncio.get_running_loop().run_in_executor(None, self._undisturbed, build)
        try:
            self._llm = await asyncio.shield(building)
        except asyncio.CancelledError:
            await self._give_up(building)
            raise
        self._counts.heard = self._counts.now()
        self._tasks = [asyncio.create_task(self._feel(), name="engine-pulse")]
        self._tasks[0].add_done_callback(self._check_task)

    async def call(self, work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
        """What one of AsyncLLM's coroutines comes to. Raises CallFailed, or what callers are told of the end."""
        calling = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({calling, ending}, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return calling.result()
        except Exception as error:
            if not self.lost_by(error):
                raise CallFailed(" ".join(str(error).split()) or type(error).__name__) from error
        finally:
            calling.cancel()
            ending.cancel()
        raise self._lost(self._reason)

    def lost_by(self, error: BaseException) -> bool:
        """Whether an error of vLLM's means the engine's end, which it then is."""
        if type(error).__name__ == "EngineDeadError":
            self._end(self._exit())
        return self._ended.is_set()

    def loss(self) -> EngineError:
        """What a request is told."""
        return self._lost(self._reason)

    def check(self) -> None:
        """Raise what callers are told once it is lost."""
        if self._ended.is_set():
            raise self._lost(self._reason)

    @property
    def ready(self) -> bool:
        """Whether it was heard of lately."""
        return self._silent_s < READY_S

    async def died(self) -> str:
        await self._ended.wait()
        return self._reason

    def kill(self) -> None:
        """End its processes, without waiting for anything; those that they have started follow."""
        for process in self._processes():
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End it in good order, or else at all. What waits for it is told of its end."""
        self._stopping = True
        well = not self._ended.is_set()
        self._end("the engine was stopped")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not well:
            self.kill()
        if self._llm is not None:
            _TOLD_AT_ITS_END.disabled = True  # that its core is gone, as an error with a trace
            await asyncio.to_thread(self._llm.shutdown, STOP_S)
        self.kill()

    # -- inside --------------------------------------------------------------------------------------

    def _processes(self) -> list[multiprocessing.process.BaseProcess]:
        """Nothing else here starts any by this module, but other engines of this process."""
        return [process for process in multiprocessing.active_children() if process.pid not in self._others]

    def _undisturbed(self, build: Callable[[], T]) -> T:
        """Run `build` so that Ctrl-C reaches none of the processes that it starts: they inherit what is blocked here.

        The server alone decides when to drain and stop.
        """
        resource_tracker.ensure_running()  # what starts it lets the signal in again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            if self._stopping:
                raise EngineDead("the engine was stopped while it was starting")
            return build()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    async def _give_up(self, building: asyncio.Future[Any]) -> None:
        """A thread can't be cancelled; what it waits for can be ended."""
        self._stopping = True
        while not building.done():
            self.kill()
            await asyncio.wait({building}, timeout=LOOK_S)
        if building.exception() is None:
            await asyncio.to_thread(building.result().shutdown, 0.0)

    async def _feel(self) -> None:
        """Notice the end of its processes, and silence that has lasted too long."""
        heard, ping = 0.0, None
        while not self._ended.is_set():
            before = self._counts.now()
            await asyncio.sleep(LOOK_S)
            if self._llm.errored or not self._processes():
                return self._end(self._exit())
            if ping is not None and ping.done():
                if not ping.cancelled() and ping.exception() is None:
                    self._counts.heard = self._counts.now()
                ping = None
            if self._counts.heard > heard:
                heard, self._silent_s = self._counts.heard, 0.0
            else:  # in longer gaps it is this process that didn't run
                self._silent_s += min(self._counts.now() - before, 2 * LOOK_S)
            if ping is None and self._silent_s > PING_AFTER_S:
                ping = asyncio.create_task(self.call(self._llm.is_sleeping()), name="engine-ping")
            if self._silent_s > self._hang_s:
                self._end(f"vLLM's engine hangs: it has said nothing for {self._silent_s:.0f} s")
                self.kill()

    def _exit(self) -> str:
        return self._reason or "vLLM's engine process ended; its log has the reason"

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._ended.set()

    def _check_task(self, task: asyncio.Task[None]) -> None:
        """Without its pulse an engine would only seem to be watched."""
        error = None if task.cancelled() else task.exception()
        if self._stopping or (error is None and not task.cancelled()):
            return
        log.critical("the server's %s ended by itself", task.get_name(), exc_info=error)
        self._end(f"the server's {task.get_name()} ended by itself ({error or 'cancelled'})")
        self.kill()
