"""A TCP server that says exactly what a test tells it to, byte for byte, when the test wants it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(payload: object) -> bytes:
    """One event with this JSON, as a chunk."""
    return chunk(b"data: %s\n\n" % json.dumps(payload).encode())


def says(text: str, model: str = "m", **more: object) -> bytes:
    """An event with a piece of text."""
    return event({"model": model, "choices": [{"index": 0, "text": text, "finish_reason": None, **more}]})


def ending(tokens: int, reason: str | None = "length", model: str = "m") -> bytes:
    """The last events of a good answer, and the end of its body."""
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 2}}
    return (
        says("", model, finish_reason=reason)
        + event({"choices": [], "usage": usage})
        + chunk(b"data: [DONE]\n\n")
        + END
    )


def good(*texts: str, model: str = "m") -> bytes:
    """A whole good answer."""
    return HEAD + b"".join(says(text, model) for text in texts) + ending(len(texts), model=model)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """The body of the next request; raises asyncio.IncompleteReadError where there is none."""
    return (await read_whole(reader))[1]


async def read_whole(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """The path and the body of the next request; raises asyncio.IncompleteReadError where there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    (length,) = (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
    return head.split()[1].decode(), await reader.readexactly(length)


@asynccontextmanager
async def raw_server(handler: Handler) -> AsyncIterator[str]:
    """Serve connections by `handler` until the block ends; gives the root's URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or the server is
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def answering(*answers: bytes, close: bool = False) -> AsyncIterator[str]:
    """Serve these bytes as the answers to the requests of each connection, in turn; the last one again and again."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        while True:
            await read_request(reader)
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
            if close:
                return

    async with raw_server(handle) as url:
        yield url
