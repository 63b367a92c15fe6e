"""A client that costs next to nothing: the same request over and over on plain sockets, answers counted, not read.

For servers that would outrun a client that parses every event. Text and JSON are looked at only where numbers stand.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

RECEIVED = 1 << 16  # bytes read at once
END = b"0\r\n\r\n"  # the last chunk of a chunked body
KEPT = 2048  # bytes at the end of an answer, where its usage stands

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


class LoadFailed(Exception):
    """A server answered something else than 200, or left; the message has what it said."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `first_s` and `seconds` run from the request to its first event and to its end.

    `events` were counted by the empty lines that end them, comments and `[DONE]` among them; `tokens` is the usage
    that the server says, 0 where it says none.
    """

    first_s: float
    seconds: float
    events: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """Answers to one load, and the seconds from its first request to its last answer."""

    answers: Sequence[Answer]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def events(self) -> int:
        return sum(answer.events for answer in self.answers)


def post(url: str, path: str, body: bytes, key: str | None = None) -> bytes:
    """The bytes of a POST of JSON that keeps its connection, with an API key if one is given."""
    host = urlsplit(url).netloc
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    if key is not None:
        head += f"\r\nauthorization: Bearer {key}"
    return head.encode("latin-1") + b"\r\n\r\n" + body


def run_load(url: str, request: bytes, streams: int, each: int, timeout: float = 60.0) -> Load:
    """Send `request` on `streams` connections, `each` times one after the other on every one of them.

    `timeout` is the longest silence of all of them together, in seconds. Raises LoadFailed.
    """
    address = urlsplit(url)
    assert address.hostname is not None and address.port is not None
    answers: list[Answer] = []
    with selectors.DefaultSelector() as waiting:
        streaming = [_Stream((address.hostname, address.port), request, each) for _ in range(streams)]
        try:
            begun = time.perf_counter()
            for stream in streaming:
                stream.send()
                waiting.register(stream.socket, selectors.EVENT_READ, stream)
            left = streams
            while left:
                ready = waiting.select(timeout)
                if not ready:
                    raise LoadFailed(f"{url} was silent for {timeout:.0f} s")
                for key, _ in ready:
                    answers += key.data.read()
                    if key.data.done:
                        waiting.unregister(key.fileobj)
                        left -= 1
            return Load(answers, time.perf_counter() - begun)
        finally:
            for stream in streaming:
                stream.socket.close()


class _Stream:
    """One connection with its requests, one at a time."""

    _head: bytes | None  # of the answer under way, once it is there
    _length: int | None  # of the whole answer, where it isn't chunked
    _first: float | None
    _end: bytes  # what came last of it

    def __init__(self, address: tuple[str, int], request: bytes, left: int) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._left = left
        self._begin()

    @property
    def done(self) -> bool:
        return not self._left

    def send(self) -> None:
        self._sent = time.perf_counter()
        self.socket.sendall(self._request)

    def read(self) -> Iterator[Answer]:
        """Take what has come; the answer that it completed, if it did. Sends the next request then."""
        data = self.socket.recv(RECEIVED)
        if not data:
            raise LoadFailed(f"the server closed the connection: {self._end[:300].decode(errors='replace')}")
        if self._head is None and not self._read_head(data):
            return
        # An event's end may lie between two reads; its two bytes never lie in two chunks of one write.
        self._events += (self._end[-1:] + data).count(b"\n\n")
        if self._events and self._first is None:
            self._first = time.perf_counter()
        self._size += len(data)
        self._end = (self._end + data)[-KEPT:]
        if self._end.endswith(END) if self._length is None else self._size >= self._length:
            now = time.perf_counter()
            told = _TOKENS.search(self._end)
            first = (self._first or now) - self._sent
            yield Answer(first, now - self._sent, self._events, int(told.group(1)) if told else 0)
            self._left -= 1
            self._begin()
            if self._left:
                self.send()

    def _read_head(self, data: bytes) -> bool:
        """Look at the status line and headers, which come in one piece; whether the answer is whole."""
        head, found, _ = data.partition(b"\r\n\r\n")
        if not found or not head.startswith(b"HTTP/1.1 200 "):
            raise LoadFailed(f"expected 200, the server said {data[:500].decode(errors='replace')}")
        self._head = head
        length = _LENGTH.search(head)
        self._length = int(length.group(1)) + len(head) + 4 if length else None
        return True

    def _begin(self) -> None:
        self._head = self._length = self._first = None
        self._events = self._size = 0
        self._end = b""
        self._sent = 0.0
