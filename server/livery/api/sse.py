"""Server-sent events: pumps a stream of chunks to a client that may be slow, silent or gone.

The first chunk is awaited before anything is sent, so that what fails early still gets a status of its own; a
long wait starts the response with a keep-alive comment. A failure later is sent as an error event and the
stream closes without `[DONE]`. Knows bytes and errors, no models.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from livery.api.errors import ApiError, describe
from livery.refusals import Draining

T = TypeVar("T")

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE_S = 15.0
SEND_TIMEOUT_S = 30.0  # a client that takes nothing for so long (and up to one silence more) is treated as gone
HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: object) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def named_event(data: Mapping[str, Any]) -> bytes:
    """An event that says its type twice, as clients of the newer APIs expect."""
    return b"event: " + str(data["type"]).encode() + b"\n" + event(data)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a route writes its stream: an event, what follows the last one, and a failure on the way."""

    event: Callable[[Mapping[str, Any]], bytes]
    done: bytes
    failed: Callable[[ApiError], bytes]


OPENAI = Dialect(event, DONE, lambda error: event(error.body))


async def disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of the work, or None, with the work cancelled, once the client has left."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


class EventStream(Response):
    """A response that pumps `chunks` and closes them, whatever happens."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        headers: Mapping[str, str],
        on_close: Callable[[], None],
        keep_alive_s: float = KEEP_ALIVE_S,
        send_timeout_s: float = SEND_TIMEOUT_S,
        dialect: Dialect = OPENAI,
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]
        self._chunks = chunks
        self._on_close = on_close  # a generator that never started runs no `finally` of its own
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s
        self._dialect = dialect
        self._started = False
        self._silent_since = 0.0
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        helpers = [asyncio.create_task(disconnected(receive)), asyncio.create_task(self._watch(send))]
        try:
            await asyncio.wait([pump, *helpers], return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                await pump  # a failure before the first chunk gets a status of its own
        except asyncio.CancelledError:  # the server has waited long enough: say that this isn't the end
            await _end([pump, *helpers])
            if self._started:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._send_timeout_s):
                        await self._fail(send, Draining())
            raise
        finally:
            await _end([pump, *helpers])
            await self._chunks.aclose()
            self._on_close()

    async def _pump(self, send: Send) -> None:
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    await self._send(send, chunk)
            await self._send(send, self._dialect.done)
        except Exception as error:
            if not self._started:
                raise
            await self._fail(send, error)
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, send: Send, error: Exception) -> None:
        await self._send(send, self._dialect.failed(describe(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, send: Send) -> None:
        """Fill silence with comments; return when the client has taken nothing for too long.

        One clock looks after all events of a stream: a timeout around each took longer than making its JSON.
        """
        now = asyncio.get_running_loop().time
        self._silent_since = now()
        while True:
            if self._sending_since is not None:
                wait = self._sending_since + self._send_timeout_s - now()
                if wait <= 0:
                    return
            else:
                wait = self._silent_since + self._keep_alive_s - now()
                if wait <= 0:
                    try:
                        async with asyncio.timeout(self._send_timeout_s):
                            await self._send(send, KEEP_ALIVE)
                    except TimeoutError:
                        return
            await asyncio.sleep(max(0.0, wait))

    async def _send(self, send: Send, chunk: bytes) -> None:
        now = asyncio.get_running_loop().time
        self._sending_since = now()
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sending_since, self._silent_since = None, now()


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
