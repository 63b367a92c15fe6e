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

    def __init__(self, count: int, name: str, initializer: Callable[[], None] | None = None) -> None:
        """`initializer` is called by each thread before its first work."""
        self.count = count
        self._threads = ThreadPoolExecutor(count, name, initializer)
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

    def stop(self) -> None:
        """Begin nothing more; what waits is cancelled."""
        with self._lock:
            left = [done for queue in self._waiting.values() for done, _ in queue]
            self._waiting.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for done in left:
            done.cancel()

    def _do_next(self) -> None:
        """Whoever submitted work has one call of this coming, which may do another's."""
        with self._lock:
            if not self._waiting:  # stopped
                return
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
