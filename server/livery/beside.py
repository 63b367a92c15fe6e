"""Where long work on JSON and text goes, so that the event loop stays free for everybody else's tokens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

# Bytes or characters above which work leaves the loop; below it, a thread costs more than the work.
LONG = 8192

# Python code only takes turns with the loop, a few milliseconds each: with more such threads the loop would wait for
# all of them in turn.
READING = ThreadPoolExecutor(1, "livery-reading")
# Tokenizers work without the interpreter's lock, but on the cores that the loop and the engine need as well.
ENCODING = ThreadPoolExecutor(max(2, (os.cpu_count() or 1) // 2), "livery-encoding")

# Reports add up as many rows as there are: two at a time leave the database, and its connections, to others.
REPORTING = ThreadPoolExecutor(2, "livery-reporting")

P = ParamSpec("P")
T = TypeVar("T")


async def beside(threads: Executor, size: int, work: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    """Do short work here and long work (by its `size` in bytes or characters) on one of `threads`."""
    if size <= LONG:
        return work(*args, **keywords)
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: work(*args, **keywords))


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
