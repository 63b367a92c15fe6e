"""Messages between two processes over a pair of sockets: msgpack, each behind its length in four bytes.

    link = Link(m.ToWorker, take=self._take, lost=self._lost)
    await link.open(mine)
    link.send(m.Begun(7, 38))                                   # never waits
    answer = await link.ask(lambda call: m.Stats(call))         # Refusal's error, or LinkLost

What is sent within one turn of the loop leaves in one write. The end of either process ends the link: nothing else has
to notice it.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

from livery.engine.base import EngineDead
from livery.workers.failures import Failure

HEAD = struct.Struct(">I")


class LinkLost(EngineDead):
    """The process at the other end is gone, and with it, for a worker, the engine."""

    def __init__(self) -> None:
        super().__init__("the process at the other end is gone")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A message that answers one that asked; `call` is that one's."""

    call: int


class Refusal(Answer, frozen=True, tag=True):
    """What was asked is refused, or failed."""

    failure: Failure


class Link(asyncio.Protocol):
    """One end. Use from one event loop."""

    def __init__(self, incoming: Any, take: Callable[[Any], None], lost: Callable[[], None]) -> None:  # noqa: ANN401
        """`incoming` is the type of what comes; `take` is given what answers nothing, `lost` called at the end."""
        self._take, self._lost = take, lost
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._calls = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._came = bytearray()
        self._out: list[bytes] = []

    async def open(self, end: socket.socket) -> None:
        """Begin over this end of the pair, which is the link's from then on."""
        await self._loop.create_unix_connection(lambda: self, sock=end)

    def close(self) -> None:
        """Say what is still to be said, and nothing more."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def send(self, message: msgspec.Struct) -> None:
        """To an end that is gone nothing is said."""
        if self._transport is None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        frame = self._encoder.encode(message)
        self._out += (HEAD.pack(len(frame)), frame)

    async def ask(self, make: Callable[[int], msgspec.Struct]) -> Any:  # noqa: ANN401  (what answers is the asker's)
        """The answer to what `make` makes of the number of the call. Raises what was refused with, or LinkLost."""
        if self._transport is None:
            raise LinkLost
        call = next(self._calls)
        answer = self._loop.create_future()
        try:
            self._asked[call] = answer
            self.send(make(call))
            return await answer
        finally:
            self._asked.pop(call, None)

    # -- asyncio.Protocol ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LinkLost())
                answer.exception()  # mark as seen: its caller may be gone
        self._lost()

    def data_received(self, data: bytes) -> None:
        self._came += data
        start = 0
        while len(self._came) >= start + HEAD.size:
            (size,) = HEAD.unpack_from(self._came, start)
            end = start + HEAD.size + size
            if len(self._came) < end:
                break
            with memoryview(self._came) as came:
                message = self._decoder.decode(came[start + HEAD.size : end])
            start = end
            self._came_one(message)
        del self._came[:start]

    def _came_one(self, message: Any) -> None:  # noqa: ANN401
        asked = self._asked.get(message.call) if isinstance(message, Answer) else None
        if asked is None:
            self._take(message)
        elif not asked.done():
            if isinstance(message, Refusal):
                asked.set_exception(message.failure.as_error())
            else:
                asked.set_result(message)

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()
