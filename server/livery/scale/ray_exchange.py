"""One request through an ASGI application in this process: what came with it in, what the application says out.

    exchange = Exchange(app, request, pull, running)
    async for message in exchange.messages(): ...           # a Head, then bytes; Wanted before it pulls

Between two processes of Ray each message costs about as much as a token, so whatever the application has said by the
time somebody asks is one message. Knows no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message

T = TypeVar("T")
MOST_WAITING = 64  # pieces of an answer that nobody has taken yet; then the application waits

Pull = Callable[[], Awaitable[bytes]]
"""The next piece of a body that is too long to come with its request; nothing at its end."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A request as it crosses to a replica of an application.

    `client` is who sent it to Ray; `more`: the body doesn't end here.
    """

    application: str
    method: str
    scheme: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    client: tuple[str, int] | None
    body: bytes = b""
    more: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins. `adapter`: the routing id of the one that makes it; "": the base; None: nothing does."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The application wants more of the body than came with its request. `to`: where to put it, once that is known."""

    to: Any = None


Said = Head | bytes | Wanted


class AnswerCutShort(Exception):
    """The application ended in the middle of its answer."""


@dataclass(slots=True)
class Running:
    """The requests that applications are still busy with, also those whose clients left."""

    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def end(self, patience_s: float) -> None:
        """Wait for all of them, then end what is left."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=patience_s)
        left = list(self.tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class Exchange:
    """One request and its answer. `scope` is the application's, with what it notes there."""

    def __init__(self, app: ASGIApp, request: Forwarded, pull: Pull, running: Running) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.scheme,
            "path": request.path,
            "raw_path": request.path.encode(),
            "query_string": request.query,
            "root_path": "",
            "headers": list(request.headers),
            "client": request.client,
            "server": None,
        }
        self._app = app
        self._pull = pull
        self._running = running
        self._body: Message | None = {"type": "http.request", "body": request.body, "more_body": request.more}
        self._more = request.more
        self._asked = False
        self._said: asyncio.Queue[Said | None] = asyncio.Queue(MOST_WAITING)
        self._gone = asyncio.Event()
        self._whole = False

    async def messages(self) -> AsyncGenerator[Said]:
        """The answer. Closing it early tells the application that its client has left, and doesn't wait for it.

        Raises AnswerCutShort, from what the application raised if it did.
        """
        task = self._running.begin(self._answer())
        try:
            more = True
            while more and (message := await self._said.get()) is not None:
                if isinstance(message, bytes):
                    message, more = self._with_all_there(message)
                yield message
            await asyncio.wait([task])
            failed = asyncio.CancelledError() if task.cancelled() else task.exception()
            if failed is not None or not self._whole:
                raise AnswerCutShort from failed
        finally:
            self._gone.set()
            while not self._said.empty():  # whoever waits for room there gets on
                self._said.get_nowait()

    async def _answer(self) -> None:
        try:
            await self._app(self.scope, self._receive, self._send)
        finally:
            if not self._gone.is_set():
                await self._said.put(None)

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            await asyncio.sleep(0)  # who goes on sending can still be ended
            return
        if message["type"] == "http.response.start":
            await self._said.put(Head(message["status"], tuple(message.get("headers", ()))))
        elif message["type"] == "http.response.body":
            self._whole = not message.get("more_body", False)
            if message.get("body"):
                await self._said.put(bytes(message["body"]))

    async def _receive(self) -> Message:
        if self._body is not None:
            message, self._body = self._body, None
            return message
        if self._more and not self._gone.is_set():
            if not self._asked:
                self._asked = True
                await self._said.put(Wanted())
            piece = await _unless(self._gone, self._pull())
            if piece is not None:
                self._more = bool(piece)
                return {"type": "http.request", "body": piece, "more_body": self._more}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def _with_all_there(self, first: bytes) -> tuple[bytes, bool]:
        """It and the bytes that are there already, and whether anything may follow."""
        pieces = [first]
        while not self._said.empty():
            message = self._said.get_nowait()
            if message is None:
                return b"".join(pieces), False
            assert isinstance(message, bytes), "an answer has one head, and its body is read before"
            pieces.append(message)
        return b"".join(pieces), True


async def _unless(event: asyncio.Event, work: Awaitable[T]) -> T | None:
    """The result of the work; None, with the work ended, once the event comes first."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
