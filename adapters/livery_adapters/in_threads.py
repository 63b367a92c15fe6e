"""Blocking work in worker threads, which can't be stopped half-way: whoever began it waits for its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

_Result = TypeVar("_Result")


async def to_its_end(work: Callable[[], _Result]) -> _Result:
    """Do it in a worker thread. A caller that is cancelled still waits: a thread can't be stopped half-way."""
    async with running(work) as result:
        return await asyncio.shield(result)


@asynccontextmanager
async def running(work: Callable[[], _Result]) -> AsyncIterator[asyncio.Future[_Result]]:
    """Run it in a worker thread beside the context, which doesn't end before it. Its result is the future's."""
    work_done = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        yield work_done
    finally:
        cancelled = None
        while not work_done.done():
            try:
                await asyncio.wait([work_done])
            except asyncio.CancelledError as error:
                cancelled = error
        if not work_done.cancelled():
            work_done.exception()  # nobody may have asked, and it counts as seen
        if cancelled is not None:
            raise cancelled
