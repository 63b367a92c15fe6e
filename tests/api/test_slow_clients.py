"""A client that takes nothing is given up, whether an event or a comment waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from livery.api.sse import EventStream


@pytest.mark.parametrize("silent", [True, False])
def test_a_client_that_takes_nothing_is_given_up(silent: bool) -> None:
    closed: list[str] = []

    async def chunks() -> AsyncGenerator[bytes]:
        try:
            yield b"data: 1\n\n"
            if silent:
                await asyncio.Event().wait()
            while True:
                yield b"data: 2\n\n"
        finally:
            closed.append("chunks")

    taken: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            if taken:
                await asyncio.Event().wait()
            taken.append(message["body"])

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> None:
        stream = EventStream(chunks(), {}, lambda: closed.append("request"), keep_alive_s=0.01, send_timeout_s=0.01)
        await asyncio.wait_for(stream({"type": "http"}, receive, send), 30)

    asyncio.run(run())
    assert taken == [b"data: 1\n\n"]
    assert closed == ["chunks", "request"]


def test_a_server_that_stops_waits_for_nobody_who_takes_nothing() -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.Event().wait()

    begun = asyncio.Event()
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            bodies.append(message["body"])
            if len(bodies) > 1:
                await asyncio.Event().wait()
            begun.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> None:
        stream = EventStream(chunks(), {}, lambda: None, send_timeout_s=0.01)
        answering = asyncio.create_task(stream({"type": "http"}, receive, send))
        await begun.wait()
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(answering, 30)

    asyncio.run(run())
    assert b"error" in bodies[1]
