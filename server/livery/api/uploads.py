"""An adapter's two files as they arrive in a multipart/form-data body: by name, in pieces, never as archives.

    curl -F adapter_config.json=@adapter_config.json -F adapter_model.safetensors=@adapter_model.safetensors URL

Or its weights alone, as the whole body:

    curl -H content-type:application/octet-stream --data-binary @adapter_model.safetensors URL

Each part is named after its file (a part's `filename` is ignored). Nothing is gathered: pieces are handed on as
they come, and whoever takes them limits their size.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message

from livery.api.errors import BodyTooSlow, ClientGone
from livery.refusals import InvalidParameter

PIECE_TIMEOUT_S = 30.0
SLOW_START_S = 30.0  # how long the rate may be anything
MIN_RATE = 16 << 10  # bytes per second from then on, over the whole upload
UPLOAD_TIMEOUT_S = 3600.0
WEIGHTS = frozenset({"application/octet-stream", "application/safetensors", ""})
REMEDY = "send the two files as multipart/form-data parts named adapter_config.json and adapter_model.safetensors"


def is_upload(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def is_weights(content_type: str) -> bool:
    """Whether a body is a file of tensors and nothing else; one of no stated type is taken for bytes."""
    return content_type.partition(";")[0].strip().lower() in WEIGHTS


def streams_upload(method: str, path: str, content_type: str) -> bool:
    """Whether a route streams a body; every other one is read whole first, within the usual limits."""
    if method != "POST":
        return False
    if path.startswith("/v1/adapters/") and path.endswith("/versions"):
        return is_upload(content_type) or is_weights(content_type)
    return path == "/v1/adapters:check" and is_upload(content_type)


class Pace:
    """Refuses an upload that comes too slowly: it holds one of few places. Only waiting for the client counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waited = 0.0
        self._bytes = 0

    async def receive(self, request: Request) -> Message:
        """The next message. Raises BodyTooSlow."""
        began = self._clock()
        try:
            async with asyncio.timeout(PIECE_TIMEOUT_S):
                message = await request.receive()
        except TimeoutError:
            raise BodyTooSlow(f"Nothing came for {PIECE_TIMEOUT_S:.0f} seconds in the middle of an upload.") from None
        self._waited += self._clock() - began
        self._bytes += len(message.get("body", b""))
        if self._waited > SLOW_START_S and self._bytes < MIN_RATE * self._waited:
            raise BodyTooSlow(f"The upload came more slowly than {MIN_RATE >> 10} KiB per second; use a faster line.")
        if self._waited > UPLOAD_TIMEOUT_S:
            raise BodyTooSlow(f"The upload took over {UPLOAD_TIMEOUT_S:.0f} seconds; use a faster line.")
        return message


async def uploaded(request: Request, pace: Pace | None = None) -> AsyncIterator[tuple[str, bytes]]:
    """(file name, piece) in the order they come. Raises InvalidParameter, BodyTooSlow or ClientGone."""
    parts = _Parts(request.headers.get("content-type", ""))
    async for data in body_pieces(request, pace):
        for piece in parts.feed(data):
            yield piece
    parts.finish()


async def body_pieces(request: Request, pace: Pace | None = None) -> AsyncIterator[bytes]:
    """A body as it comes. Raises InvalidParameter, BodyTooSlow or ClientGone."""
    pace = pace or Pace()
    if request.headers.get("content-encoding", "identity") != "identity":
        raise InvalidParameter("Compressed bodies are not taken; send the files as they are.", None)
    while True:
        message = await pace.receive(request)
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def announced_size(request: Request) -> int | None:
    """How many bytes a body is said to have."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdigit() and "transfer-encoding" not in request.headers else None


class _Parts:
    """The parser's callbacks, turned into pieces with the name of the part they belong to."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary or len(boundary) > 200:
            raise InvalidParameter(
                f"This is not an upload; {REMEDY}, or new weights alone as application/octet-stream.", None
            )
        self._pieces: deque[tuple[str, bytes]] = deque()
        self._name = ""
        self._field = bytearray()
        self._value = bytearray()
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> deque[tuple[str, bytes]]:
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise InvalidParameter(f"The upload is not multipart/form-data ({error}); {REMEDY}.", None) from None
        found, self._pieces = self._pieces, deque()
        return found

    def finish(self) -> None:
        if not self._ended:
            raise InvalidParameter("The upload ends in the middle of a part; send it again.", None)

    def _begin(self) -> None:
        self._name = ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._field, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        if not self._name:
            raise InvalidParameter(f"A part of the upload has no name; {REMEDY}.", None)
        self._pieces.append((self._name, b""))  # an empty file is a file too

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append((self._name, data[start:end]))

    def _end(self) -> None:
        self._ended = True
