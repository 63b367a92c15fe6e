"""Tasks that run beside the requests for as long as a server lives, and without which it only seems to work.

    vitals.run("registry-follower", self._follow())

One that ends before it is told to is named in the log and by `ended`, which readiness and health ask.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Literal

from livery.engine.base import Engine, EngineDead, EngineRestarting
from livery.refusals import NotReady

log = logging.getLogger("livery.vitals")


class Vitals:
    """The tasks of one server. Use from one event loop."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ended: list[str] = []

    @property
    def names(self) -> list[str]:
        """Those that run."""
        return list(self._running)

    @property
    def ended(self) -> list[str]:
        """Those that ended by themselves; nothing starts them again."""
        return list(self._ended)

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that is to run until `stop`. Names are given once."""
        task = asyncio.create_task(work, name=name)
        self._running[name] = task
        task.add_done_callback(self._lost)

    async def stop(self, *names: str) -> None:
        """End these, and wait until they have; those that don't run any more are passed over."""
        tasks = [self._running.pop(name) for name in names if name in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _lost(self, task: asyncio.Task[None]) -> None:
        if self._running.pop(task.get_name(), None) is None:  # it was told to stop
            return
        self._ended.append(task.get_name())
        error = None if task.cancelled() else task.exception()
        log.critical("the server's %s ended, so it is not ready any more; restart it", task.get_name(), exc_info=error)


class Readiness:
    """What probes ask of one server."""

    def __init__(self, engine: Engine, vitals: Vitals) -> None:
        self._engine, self._vitals = engine, vitals

    async def ready(self) -> None:
        """Can a request that comes now get on? Known within two seconds.

        Raises NotReady, EngineRestarting or EngineDead where it can't.
        """
        self._check_vitals()
        if not await self._engine.ready():
            raise NotReady

    async def health(self) -> Literal["ok", "busy", "restarting"]:
        """Is this process worth keeping? Raises NotReady where nothing but a new one helps.

        A slow engine may be in a long step, and a lost one is being restarted.
        """
        self._check_vitals()
        try:
            return "ok" if await self._engine.ready() else "busy"
        except EngineRestarting:
            return "restarting"
        except EngineDead:
            raise NotReady from None

    def _check_vitals(self) -> None:
        for name in self._vitals.ended:
            raise NotReady(f"The server's {name} has ended; the server must be restarted.")
