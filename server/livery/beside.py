"""Where long work goes that is everybody's, in turns of tenants, so that the event loop stays free for tokens."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from livery.host import cores

# Bytes or characters above which work leaves the loop; below it, a thread costs more than the work.
LONG = 8192

P = ParamSpec("P")
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


# Python code only takes turns with the loop, a few milliseconds each: with more such threads the loop would wait for
# all of them in turn.
READING = SharedThreads(1, "livery-reading")
# Tokenizers work without the interpreter's lock, but on the cores that the loop and the engine need as well.
ENCODING = SharedThreads(max(2, cores() // 2), "livery-encoding")
# Reports and lists take as long as there are rows: two at a time leave the database, and its connections, to others.
REPORTING = SharedThreads(2, "livery-reporting")


async def beside(
    threads: SharedThreads, tenant: str, size: int, work: Callable[P, T], *args: P.args, **keywords: P.kwargs
) -> T:
    """Do short work of a tenant's here, and long work (by its `size` in bytes or characters) on one of `threads`."""
    if size <= LONG:
        return work(*args, **keywords)
    return await threads.run(tenant, partial(work, *args, **keywords))


def weight(value: object, most: int = LONG) -> int:
    """About how many characters plain data holds, counting its values too; no more than it takes to be over `most`."""
    total, waiting = 0, [value]
    while waiting and total <= most:
        item = waiting.pop()
        total += 1
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            total += len(item)
            waiting += item.values() if total <= most else ()
        elif isinstance(item, list | tuple):
            total += len(item)
            waiting += item if total <= most else ()
    return total
