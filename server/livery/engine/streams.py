"""Requests under way on the other side of a border: what comes for each in order, and its end, whoever brings it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from livery.engine.base import EngineError, GenerationRequest, RequestRefused, TokenDelta
from livery.engine.figures import PromptRead

LEFT_SECONDS = 5.0  # how long it may take to say how far it was with a request that is given up: the step under way


class Streams:
    """Use from one event loop. `submit` sends a request to the other side and `abort` has it dropped there."""

    def __init__(
        self, submit: Callable[[GenerationRequest], Awaitable[None]], abort: Callable[[str], Awaitable[None]]
    ) -> None:
        self._submit, self._abort = submit, abort
        self._open: dict[str, asyncio.Queue[TokenDelta | Exception]] = {}

    async def generate(self, request: GenerationRequest, read: PromptRead | None = None) -> AsyncIterator[TokenDelta]:
        """As an engine's. Raises RequestRefused for an id that is in use, and what `submit` or the other side says."""
        if request.request_id in self._open:
            raise RequestRefused(f"request id {request.request_id!r} is already in use")
        stream: asyncio.Queue[TokenDelta | Exception] = asyncio.Queue()
        self._open[request.request_id] = stream
        finished = begun = False
        try:
            try:
                await self._submit(request)
            except EngineError:  # it never got there
                finished = True
                raise
            while not finished:
                item = await stream.get()
                if isinstance(item, Exception):
                    finished = True
                    raise item
                finished, begun = item.finish_reason is not None, begun or bool(item.token_ids)
                _note(item, read)
                yield item
        finally:
            try:
                if not finished:
                    await self._abort(request.request_id)
                    if read is not None and not begun:
                        await _ended(stream, read)
            finally:
                del self._open[request.request_id]

    @property
    def open(self) -> tuple[str, ...]:
        """Ids of requests under way."""
        return tuple(self._open)

    def take(self, delta: TokenDelta) -> None:
        """This came; of a request that nobody waits for any more it is dropped."""
        if (stream := self._open.get(delta.request_id)) is not None:
            stream.put_nowait(delta)

    def fail(self, request_id: str, error: Exception) -> None:
        """A request ended so."""
        if (stream := self._open.get(request_id)) is not None:
            stream.put_nowait(error)

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """All that are open end so, each with an error of its own: one raised by many would gather their tracebacks."""
        for stream in self._open.values():
            stream.put_nowait(error())


async def _ended(stream: asyncio.Queue[TokenDelta | Exception], read: PromptRead) -> None:
    """Wait, but not long, for the last delta of a request that was aborted, and note what it says."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LEFT_SECONDS):
            while isinstance(item := await stream.get(), TokenDelta):
                _note(item, read)
                if item.finish_reason is not None:
                    return


def _note(delta: TokenDelta, read: PromptRead | None) -> None:
    if read is not None and delta.finish_reason in ("abort", "error"):
        read.tokens, read.cached = delta.prompt_tokens, delta.cached_tokens
