"""Bounds on connections, for every listener of a server: on whoever sends nothing, too much or too slowly, or takes
nothing.

What a request may hold is the boundary's affair; here it is about bytes before there is a request, and after its
answer. Parsing is h11's: two lengths that contradict each other, and what isn't HTTP, are 400 there.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable, Sized
from functools import partial
from typing import Any, cast

import orjson
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from livery import descriptors

HEAD_TIMEOUT_S = 10.0  # for all of a request's head, from when the connection is made or the head begins
IDLE_S = 75  # between two requests on a connection: proxies in front keep theirs for 60 s and reuse them till then
STALL_S = 30.0  # a client that takes nothing for so long is cut off
HEAD_BYTES = 16 << 10


class EdgeConfig(uvicorn.Config):
    """uvicorn's configuration with these bounds; `max_connections` at once, or as many as descriptors allow."""

    def __init__(
        self,
        app: Any,  # noqa: ANN401  (as uvicorn has it)
        *,
        max_connections: int = 0,
        keep_alive_s: int = IDLE_S,
        max_adapters: int = sys.maxsize,
        elsewhere: Callable[[int], int] = lambda _: 0,
        **rest: Any,  # noqa: ANN401
    ) -> None:
        """`elsewhere` is told how many connections this process has, and says how many the server's others have that
        count among `max_connections` too. `keep_alive_s`: how long a connection may be idle. `max_adapters`: the most
        adapter versions that requests run on at once, which take descriptors as well.
        """
        super().__init__(
            app,
            http=EdgeProtocol,
            ws="none",  # an upgrade would lead past these bounds
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who is at the other end of the socket decides, not who somebody says it is
            timeout_keep_alive=keep_alive_s,
            h11_max_incomplete_event_size=HEAD_BYTES,
            **rest,
        )
        self.max_connections = max_connections or descriptors.connections(max_adapters)
        self._elsewhere = elsewhere if max_connections else lambda _: 0  # descriptors are each process's own
        self.idle: dict[EdgeProtocol, None] = {}  # connections between two requests, the one that is so longest first

    def has_room(self, connections: Sized) -> bool:
        """Whether there may be so many; called on every one that comes or goes."""
        return len(connections) + self._elsewhere(len(connections)) <= self.max_connections

    def close_idle(self) -> bool:
        """Close the connection that has been idle longest, for another one. Whether there was one."""
        longest = next(iter(self.idle), None)
        if longest is None:
            return False
        del self.idle[longest]
        longest.shutdown()
        return True

    def load(self) -> None:
        """Make what was configured. Sockets are listened on plainly: TLS begins where its connections are counted."""
        super().load()
        if self.ssl is not None:
            self.http_protocol_class = cast(Any, partial(Handshake, self.ssl))
            self.ssl = None


class EdgeProtocol(H11Protocol):
    """One connection."""

    transport: asyncio.Transport
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _begun = False  # bytes of a head have come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Whatever the kernel doesn't take at once counts: an answer waits for its client event by event.
        transport.set_write_buffer_limits(high=1, low=0)  # asyncio's TLS takes a limit of 0 for one that is reached
        config = cast(EdgeConfig, self.config)
        if not config.has_room(self.connections) and not config.close_idle():
            self._refuse(503, "too_many_connections", "The server has too many connections open. Please retry shortly.")
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        cast(EdgeConfig, self.config).idle.pop(self, None)
        self._disarm()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().connection_lost(exc)
        cast(EdgeConfig, self.config).has_room(self.connections)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering and not self.transport.is_closing():
            cast(EdgeConfig, self.config).idle[self] = None

    def data_received(self, data: bytes) -> None:
        cast(EdgeConfig, self.config).idle.pop(self, None)
        if self._answering:
            super().data_received(data)
            return
        # h11 bounds a head that isn't whole yet: piece by piece that is every head.
        for start in range(0, len(data), HEAD_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + HEAD_BYTES])
        if self._answering:
            self._disarm()
        else:
            self._begun = True
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_request", f"{msg} Send HTTP/1.1 with a head of at most {HEAD_BYTES} bytes.")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()

    @property
    def asked(self) -> bool:
        """Whether a request has come."""
        return self.cycle is not None

    @property
    def _answering(self) -> bool:
        """Whether a whole head has come whose answer isn't."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self._answering or self.transport.is_closing():
            return
        if self._begun:
            self._refuse(
                408, "request_timeout", f"The request's head didn't arrive within {HEAD_TIMEOUT_S:.0f} seconds."
            )
        else:
            self.transport.close()

    def _watch_stall(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(STALL_S, self._stalled, left)

    def _stalled(self, left: int) -> None:
        """Cut off a client that has taken nothing since; closing in good order would wait for it."""
        if self.transport.get_write_buffer_size() < left:
            self._watch_stall()
        else:
            self.transport.abort()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer where there is no request, and close."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        body = orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
        head = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(["retry-after: 1"] if status == 503 else []),
        ]
        self.transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        self.transport.close()


class Handshake(asyncio.Protocol):
    """A connection on which TLS is still to begin. It counts like any other, and has as long as a head."""

    asked = False  # as EdgeProtocol says it

    def __init__(self, context: ssl.SSLContext, *, server_state: ServerState, **rest: Any) -> None:  # noqa: ANN401
        """Arguments besides `context` are EdgeProtocol's."""
        self._context = context
        self._served = EdgeProtocol(server_state=server_state, **rest)
        self._config = cast(EdgeConfig, self._served.config)
        self._connections = cast(set[asyncio.Protocol], server_state.connections)
        self._early: list[bytes] = []  # what came with the end of the handshake
        self._shaking: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._connections.add(self)
        if not self._config.has_room(self._connections) and not self._config.close_idle():
            transport.abort()  # nothing can be said here, and a handshake is work
            return
        transport.pause_reading()
        self._shaking = self._served.loop.create_task(self._shake(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def shutdown(self) -> None:
        """The server stops: there is no request yet."""
        self._transport.abort()

    def _gone(self) -> None:
        self._connections.discard(self)
        self._config.has_room(self._connections)

    async def _shake(self, transport: asyncio.Transport) -> None:
        try:
            secure = await self._served.loop.start_tls(
                transport, self, self._context, server_side=True, ssl_handshake_timeout=HEAD_TIMEOUT_S
            )
        except OSError:  # no TLS, too late, or gone; asyncio has closed the connection
            return
        finally:
            self._gone()
        if secure is None or transport.is_closing():
            return
        secure.set_protocol(self._served)
        self._served.connection_made(secure)
        for data in self._early:
            self._served.data_received(data)


REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class EdgeServer(uvicorn.Server):
    """uvicorn's server that goes on answering while what is under way comes to its end."""

    config: EdgeConfig

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Let requests under way end, up to the graceful timeout; then end the rest.

        Whoever comes meanwhile is still answered, on a connection that ends with the answer, and so is whose connection
        is made and request to come: load balancers that haven't noticed yet get a 503 they can act on.
        """
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        for connection in list(cast(set[EdgeProtocol | Handshake], self.server_state.connections)):
            if connection.asked:
                connection.shutdown()
        timeout, under_way = self.config.timeout_graceful_shutdown, set(self.server_state.tasks)
        now = asyncio.get_running_loop().time
        deadline = now() + (timeout if timeout is not None else float("inf"))
        while under_way and not self.force_exit and now() < deadline:
            _, under_way = await asyncio.wait(under_way, timeout=min(0.1, max(0.0, deadline - now())))
        self.config.timeout_graceful_shutdown = 0 if under_way else 1  # who came last gets a second
        await super().shutdown(sockets)
        tasks = [task for task in self.server_state.tasks if not task.done()]
        if tasks:  # they were told to end, and say so to their clients
            await asyncio.wait(tasks, timeout=1)
