"""A closed loop: each of N streams sends its next request when its last one is done.

Knows neither what a request is nor how it is sent; it only keeps N under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from livery_loadtest.client import Record
from livery_loadtest.workload import Request

Send = Callable[[Request], Awaitable[Record]]


async def closed_loop(
    send: Send, requests: Sequence[Request], streams: int, on_done: Callable[[], None]
) -> list[Record]:
    """Send all requests over `streams` streams; records come back in the order of `requests`."""
    records: list[Record | None] = [None] * len(requests)
    queue = iter(enumerate(requests))
    async with asyncio.TaskGroup() as group:
        for _ in range(min(streams, len(requests))):
            group.create_task(_stream(send, queue, records, on_done))
    return [record for record in records if record is not None]


async def _stream(
    send: Send,
    queue: Iterator[tuple[int, Request]],
    records: list[Record | None],
    on_done: Callable[[], None],
) -> None:
    for index, request in queue:
        records[index] = await send(request)
        on_done()
