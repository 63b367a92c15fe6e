"""A few threads for work that takes long, in turns of tenants."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class SharedThreads:
    """Threads that tenants take in turn: one piece of work of each that waits, then the next one of each.

    A thread is idle only where no work waits. Use from any thread and event loop.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count, name)
        self._waiting: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}  # of tenants, who is next first
        self._lock = threading.Lock()

    def submit(self, tenant: str, work: Callable[[], T]) -> Future[T]:
        """Have work done for a tenant; what is cancelled before its turn is passed over."""
        done: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(tenant, deque()).append((done, work))
        self._threads.submit(self._do_next)
        return done

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """Have work done for a tenant and wait for it."""
        return await asyncio.wrap_future(self.submit(tenant, work))

    def _do_next(self) -> None:
        """Whoever submitted work has one call of this coming, which may do another's."""
        with self._lock:
            tenant = next(iter(self._waiting))
            queue = self._waiting.pop(tenant)
            done, work = queue.popleft()
            if queue:
                self._waiting[tenant] = queue  # behind all others
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  (it is the waiter's)
            done.set_exception(error)
