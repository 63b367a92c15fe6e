"""HTTP/1.1 to one server: kept connections, one request at a time on each, its answer told as its bytes arrive.

An answer's bytes go from the socket through the parser to an Exchange within one call of the event loop, which notes
the time before anything else; only the end of an answer wakes a task. Whatever a server does ends in Failed, whose
kind is short and countable.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

BUFFER = 1 << 16  # bytes read at once
MOST_HEAD = 1 << 16  # bytes of a head, of a trailer or of chunks' extensions, without any content
IDLE_S = 2.0  # a kept connection is used again within this: servers close them after 5 s (uvicorn, llama.cpp) or more
STALE_S = 0.1  # a server's closing that crosses a request on its way is here within this of its sending
LINGER_S = 1.0  # how long the end of a body may come after the end of what is in it


class Failed(Exception):
    """An answer is no good. `kind` groups such failures, the message says what came."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Left(Exception):
    """The client goes away here, as it was planned."""


class _Stale(Exception):
    """A kept connection was closed as the request went out: the server had enough of waiting, and never took it."""


class Exchange(Protocol):
    """What is told of one request and its answer. Times are of `time.perf_counter`; what it raises ends the exchange.

    `whole`: the answer is complete, though its body may go on for a moment. `on_data` says whether what came is worth
    waiting longer: a server that only keeps the line busy is silent.
    """

    whole: bool

    def on_connected(self, now: float) -> None: ...

    def on_sent(self, now: float) -> None: ...

    def on_retried(self) -> None: ...

    def on_head(self, status: int, headers: Mapping[str, str]) -> None: ...

    def on_data(self, data: bytes, now: float) -> bool: ...

    def on_end(self, now: float) -> None: ...


class Pool:
    """Connections to the server at `url` (its root), as many as there are requests under way.

    `silence_s` is the longest time without anything of an answer, `connect_s` the longest for a connection, `whole_s`
    the longest for all of an answer, however steadily it drips.
    """

    def __init__(self, url: str, silence_s: float, connect_s: float, whole_s: float = math.inf) -> None:
        address = urlsplit(url)
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._host = address.hostname or ""
        self._port = address.port or (443 if self._tls else 80)
        self._authority, self._prefix = address.netloc.rpartition("@")[2], address.path.rstrip("/")
        self._connect_s = connect_s
        self._patience = silence_s, whole_s
        self._addresses: list[str] = []
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._view = memoryview(bytearray(BUFFER))

    async def open(self) -> None:
        """Look up the host, once: what it took later would count as the server's. Raises Failed."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as failure:
            raise Failed("unknown host", f"{self._host}: {failure}") from failure
        self._addresses = list(dict.fromkeys(str(one[4][0]) for one in found))

    def post(self, path: str, body: bytes, key: str | None) -> bytes:
        """The bytes of a POST of JSON, with an API key if one is given."""
        head = (
            f"POST {self._prefix}{path} HTTP/1.1\r\nhost: {self._authority}\r\nuser-agent: livery-bench\r\n"
            f"accept: text/event-stream\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        if key is not None:
            head += f"authorization: Bearer {key}\r\n"
        return head.encode("latin-1") + b"\r\n" + body

    async def exchange(self, request: bytes, exchange: Exchange) -> None:
        """Send a request and wait for the end of its answer. Raises Failed, Left or what `exchange` raises.

        A kept connection that turns out to be closed costs nothing but time: the request goes out on a new one. Where
        it is closed later than STALE_S after sending, the server had the request, which has failed then: a POST goes
        out again only where the first is known to have done nothing (RFC 9110, 9.2.2).
        """
        kept = self._kept()
        if kept is not None:
            try:
                return await kept.ask(request, exchange, *self._patience)
            except _Stale:
                exchange.on_retried()
        connection = await self._connect()
        exchange.on_connected(time.perf_counter())
        return await connection.ask(request, exchange, *self._patience)

    def close(self) -> None:
        """Close all connections at once, those under way too."""
        for connection in list(self._all):
            connection.abort()

    def put_back(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _kept(self) -> _Connection | None:
        """The connection used last, unless that is too long ago."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        failure: Failed | None = None
        for address in list(self._addresses):
            try:
                async with asyncio.timeout(self._connect_s):
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self, self._view),
                        address,
                        self._port,
                        ssl=self._tls,
                        server_hostname=self._host if self._tls else None,
                    )
            except (OSError, TimeoutError) as error:
                failure = failure or _unconnected(error, f"{address} port {self._port}", self._connect_s)
                continue
            self._all.add(connection)
            self._addresses.sort(key=address.__ne__)  # the one that answers first
            return connection
        raise failure or Failed("unknown host", f"{self._host} has no address")


def _unconnected(error: Exception, where: str, connect_s: float) -> Failed:
    """Why there is no connection; a lack of the client's own has kinds of its own."""
    if isinstance(error, TimeoutError):
        return Failed("connect timeout", f"{where}: no connection within {connect_s:g} s")
    if isinstance(error, ssl.SSLError):
        return Failed("tls failed", f"{where}: {error}")
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        return Failed(OUT_OF_DESCRIPTORS, f"{where}: {error}; raise the limit (ulimit -n)")
    if number == errno.EADDRNOTAVAIL:
        return Failed(OUT_OF_PORTS, f"{where}: {error}; keep connections, or widen the range of local ports")
    kinds = {errno.ECONNREFUSED: "connection refused", errno.ECONNRESET: "connection reset"}
    return Failed(kinds.get(number or 0, "connect failed"), f"{where}: {error}")


OUT_OF_DESCRIPTORS = "client out of descriptors"
OUT_OF_PORTS = "client out of ports"
OWN_FAILURES = frozenset({OUT_OF_DESCRIPTORS, OUT_OF_PORTS})  # no fault of the server's


class _Connection(asyncio.BufferedProtocol):
    """One connection, for one exchange at a time. All of a pool read into one buffer, which is parsed at once."""

    _transport: asyncio.Transport

    def __init__(self, pool: Pool, view: memoryview) -> None:
        self._pool = pool
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._used = self._heard = self._latest = 0.0
        self._answers = 0
        self._begin()

    def _begin(self) -> None:
        """Nothing of the next answer is there."""
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._status = self._empty = 0
        self._touched = self._told = self._framed = self._complete = self._excess = False
        self._keeps = True

    def usable(self) -> bool:
        return not self._transport.is_closing() and time.perf_counter() - self._used < IDLE_S

    def abort(self) -> None:
        self._transport.abort()

    async def ask(self, request: bytes, exchange: Exchange, silence_s: float, whole_s: float) -> None:
        """Send a request; returns at the end of its answer."""
        self._begin()
        self._exchange, self._silence_s = exchange, silence_s
        self._done = done = self._loop.create_future()
        self._heard = time.perf_counter()
        self._latest, self._whole_s = self._heard + whole_s, whole_s
        self._timer = self._loop.call_later(min(silence_s, whole_s), self._check_silence)
        self._transport.write(request)
        try:
            exchange.on_sent(self._heard)
        except Left as left:
            self._fail(left)
        try:
            await done
        except asyncio.CancelledError:
            self._exchange = None
            self.abort()
            raise
        finally:
            self._timer.cancel()

    # --- what the event loop tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        now = time.perf_counter()
        if self._exchange is None:  # a server that speaks unasked
            return self.abort()
        self._touched = True
        try:
            self._parser.feed_data(self._view[:nbytes])
            self._tell(self._exchange, nbytes, now)
        except (HttpParserError, HttpParserUpgrade) as failure:
            self._fail(Failed("bad http", str(failure)))
        except (Failed, Left) as failure:
            self._fail(failure)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        if self._exchange is None:
            return
        if self._exchange.whole or (self._status and not self._framed and error is None):
            self._settle(time.perf_counter())  # a body without a length ends with its connection
        elif not self._touched and self._answers and time.perf_counter() - self._heard <= STALE_S:
            self._fail(_Stale())
        elif error is not None:
            self._fail(Failed("connection reset", f"the connection broke: {error}"))
        elif not self._touched:
            self._fail(Failed("no answer", "the server closed the connection without an answer"))
        else:
            self._fail(Failed("stream cut", "the server closed the connection in the middle of the answer"))

    # --- what the parser tells ---

    def on_message_begin(self) -> None:
        self._excess = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self._excess:
            self._status = status
            self._framed = "content-length" in self._headers or "transfer-encoding" in self._headers

    def on_body(self, data: bytes) -> None:
        if not self._excess:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True
            self._keeps = self._parser.should_keep_alive()
        else:  # 100 Continue and the like: the answer is still to come
            self._headers = {}

    # --- what becomes of it ---

    def _tell(self, exchange: Exchange, nbytes: int, now: float) -> None:
        if self._status and not self._told:
            self._told = True
            self._heard = now
            exchange.on_head(self._status, self._headers)
        if self._pieces:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._empty = 0
            if exchange.on_data(data, now):
                self._heard = now
        else:
            self._empty += nbytes
        if self._complete:
            self._settle(now)
        elif self._empty > MOST_HEAD:
            raise Failed("head too large", f"over {MOST_HEAD} bytes of headers, or of what stands around a body")
        elif exchange.whole and self._silence_s > LINGER_S:
            self._silence_s = LINGER_S
            self._watch(LINGER_S)

    def _watch(self, seconds: float) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._check_silence)

    def _check_silence(self) -> None:
        now = time.perf_counter()
        silent, left = self._heard + self._silence_s - now, self._latest - now
        if self._exchange is None:
            return
        if silent > 0 and (left > 0 or self._exchange.whole):
            self._watch(silent if self._exchange.whole else min(silent, left))
        elif self._exchange.whole:
            self._keeps = False
            self._settle(now)
        elif silent > 0:
            self._fail(Failed("too slow", f"the answer wasn't whole after {self._whole_s:g} s"))
        else:
            self._fail(Failed("silent", f"nothing of the answer came for {self._silence_s:g} s"))

    def _settle(self, now: float) -> None:
        """The answer is there to its end; the connection takes the next one, if it can."""
        exchange, done = self._take()
        self._answers += 1
        if self._complete and self._keeps and not self._excess and not self._transport.is_closing():
            self._used = now
            self._pool.put_back(self)
        else:
            self.abort()
        try:
            exchange.on_end(now)
        except Failed as failure:
            done.set_exception(failure)
        else:
            done.set_result(None)

    def _fail(self, failure: Exception) -> None:
        _, done = self._take()
        if isinstance(failure, Left):
            self._transport.close()  # what was sent goes out to its end
        else:
            self.abort()
        done.set_exception(failure)

    def _take(self) -> tuple[Exchange, asyncio.Future[None]]:
        exchange, done = self._exchange, self._done
        assert exchange is not None and done is not None
        self._exchange = self._done = None
        return exchange, done
