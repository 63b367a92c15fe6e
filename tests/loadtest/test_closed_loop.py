"""N streams: never more under way, never fewer while requests remain, each request exactly once."""

from __future__ import annotations

import asyncio

import pytest

from livery_loadtest.client import Record
from livery_loadtest.closed_loop import closed_loop
from livery_loadtest.workload import Request


@pytest.mark.parametrize(("streams", "count"), [(1, 5), (3, 10), (8, 3)])
async def test_streams_stay_full_and_records_stay_in_order(streams: int, count: int) -> None:
    under_way: list[str] = []
    widths: list[int] = []
    done: list[int] = []

    async def send(request: Request) -> Record:
        under_way.append(request.model)
        for _ in range(1 + int(request.model) % 3):  # requests overtake each other
            await asyncio.sleep(0)
            widths.append(len(under_way))
        under_way.remove(request.model)
        return Record(request.model, 0.0)

    requests = [Request(str(index), "", 1) for index in range(count)]
    records = await closed_loop(send, requests, streams, lambda: done.append(1))
    assert [record.model for record in records] == [str(index) for index in range(count)]
    assert max(widths) == min(streams, count)
    assert len(done) == count
