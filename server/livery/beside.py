"""Where long work goes that is everybody's, in turns of tenants, so that the event loop stays free for tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from livery.host import cores
from livery_adapters.shared_threads import SharedThreads

__all__ = ["ENCODING", "MAKING", "READING", "REPORTING", "SharedThreads", "Together", "beside", "weight"]

# Bytes or characters above which work leaves the loop; below it, a thread costs more than the work.
LONG = 8192

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Together(Generic[K, T]):
    """Work done once for all who ask for the same before it begins; who asks while it is under way gets the next.

    So what everybody gets is as of after they asked. Use from one event loop.
    """

    def __init__(self) -> None:
        self._under_way: dict[K, asyncio.Task[T]] = {}
        self._next: dict[K, asyncio.Task[T]] = {}

    async def do(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of work that is the same for everybody who gives this key."""
        if key not in self._next:
            self._next[key] = asyncio.create_task(self._after(self._under_way.get(key), key, work))
        return await asyncio.shield(self._next[key])  # who leaves takes it from nobody

    async def _after(self, before: asyncio.Task[T] | None, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if before is not None:
            await asyncio.wait([before])
        own = self._under_way[key] = self._next.pop(key)
        try:
            return await work()
        finally:
            if self._under_way[key] is own:
                del self._under_way[key]


# Python code only takes turns with the loop, a few milliseconds each: with more such threads the loop would wait for
# all of them in turn.
READING = SharedThreads(1, "livery-reading")
# Tokenizers work without the interpreter's lock, but on the cores that the loop and the engine need as well.
ENCODING = SharedThreads(max(2, cores() // 2), "livery-encoding")
# Tokenizers hold that lock while they are made: more threads would make none sooner.
MAKING = SharedThreads(1, "livery-tokenizers")
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
