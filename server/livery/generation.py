"""One admitted request: its sequences on the engine, turned into text, counted and ended.

The only writer of a request's detokeniser, stop buffer and usage. Knows no HTTP, no names of models and no
admission rules; `service` makes these and `api` consumes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, cast

from livery.engine.base import Engine, EngineError, GenerationRequest, TokenDelta
from livery.metrics import RequestMeter
from livery.refusals import GenerationFailed
from livery.stops import StopBuffer, StopSearch
from livery.text import Detokenizer, Tokenizer

StopReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """New text of one choice. The last delta of a choice carries `finish_reason`."""

    index: int
    text: str
    finish_reason: StopReason | None = None


@dataclass(slots=True)
class Usage:
    """Tokens of one request: prompts once each, completions over all choices.

    `cached_tokens` of the prompts' were not computed for this request.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Generation:
    """One request being answered. Iterate `deltas` once; `close` in any case."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        requests: Sequence[GenerationRequest],
        stops: Sequence[str],
        meter: RequestMeter,
        usage: Usage,
        release: Callable[[], None],
        *,
        answers_each: int = 1,
    ) -> None:
        """`requests` come prompt by prompt, `answers_each` of each."""
        self.usage = usage
        self._answers_each = answers_each
        self._engine = engine
        self._requests = list(requests)
        search = StopSearch(stops)
        self._texts = [_SequenceText(tokenizer, request, search) for request in requests]
        self.meter = meter
        self._release = release
        self._closed = False
        self._unfinished: Literal["abort", "error"] = "abort"

    async def deltas(self) -> AsyncGenerator[ChoiceDelta]:
        """Text of all choices as it comes. Raises GenerationFailed, EngineDead or RequestRefused."""
        source = self._sequence(0) if len(self._requests) == 1 else self._merged()
        try:
            async with aclosing(source):
                async for delta in source:
                    yield delta
        except (GenerationFailed, EngineError):
            self._unfinished = "error"
            raise
        self.meter.finished()

    @property
    def choices(self) -> int:
        """How many answers there will be: prompts times answers for each."""
        return len(self._requests)

    def close(self) -> None:
        """Let go of the adapter version and close the books; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.meter.close(self.usage.prompt_tokens, self.usage.completion_tokens, self._unfinished)
        self._release()

    async def _sequence(self, index: int) -> AsyncGenerator[ChoiceDelta]:
        """One sequence's text. Leaving early, as at a stop string, closes the engine's side: an abort."""
        text = self._texts[index]
        # The protocol says iterator; closing it is part of the contract, so it is a generator in fact.
        async with aclosing(cast(AsyncGenerator[TokenDelta], self._engine.generate(self._requests[index]))) as source:
            async for tokens in source:
                before = text.count
                piece, reason = text.push(tokens)
                self.usage.completion_tokens += text.count - before
                if index % self._answers_each == 0:  # the others find what the first answer's run has computed
                    self.usage.cached_tokens += tokens.cached_tokens
                self.meter.tokens(index, text.count - before)
                if piece or reason:
                    yield ChoiceDelta(index, piece, reason)
                if reason:
                    self.meter.sequence_finished(reason, text.count)
                    return
        raise GenerationFailed("The engine ended this request without a reason.")

    async def _merged(self) -> AsyncGenerator[ChoiceDelta]:
        """All sequences at once, in the order their text comes.

        The queue needs no bound of its own: each sequence is bounded by its max_tokens.
        """
        queue: asyncio.Queue[ChoiceDelta | None] = asyncio.Queue()

        async def pump(index: int) -> None:
            async with aclosing(self._sequence(index)) as sequence:
                async for delta in sequence:
                    queue.put_nowait(delta)

        async def pump_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for index in range(len(self._requests)):
                        group.create_task(pump(index))
            finally:
                queue.put_nowait(None)

        task = asyncio.create_task(pump_all())
        try:
            while (delta := await queue.get()) is not None:
                yield delta
            await _raise_first(task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _raise_first(task: asyncio.Task[None]) -> None:
    try:
        await task
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


class _SequenceText:
    """Text, stops and token count of one sequence."""

    def __init__(self, tokenizer: Tokenizer, request: GenerationRequest, stops: StopSearch) -> None:
        self._detokenizer = Detokenizer(tokenizer, request.prompt_token_ids)
        self._stops = StopBuffer(stops)
        self._min_tokens = request.sampling.min_tokens
        self.count = 0

    def push(self, delta: TokenDelta) -> tuple[str, StopReason | None]:
        """Text to send and why the sequence ended, if it did. Raises GenerationFailed."""
        if delta.finish_reason == "error":
            raise GenerationFailed(delta.error or "The engine failed this request.")
        if delta.finish_reason == "abort":
            raise GenerationFailed("The engine dropped this request.")
        pieces: list[str] = []
        last = len(delta.token_ids) - 1
        for position, token in enumerate(delta.token_ids):
            self.count += 1
            if delta.finish_reason == "stop" and position == last:
                break  # the stop token itself is counted, not shown
            piece, hit = self._visible(self._detokenizer.push(token))
            pieces.append(piece)
            if hit:
                return "".join(pieces), "stop"
        if delta.finish_reason is None:
            return "".join(pieces), None
        piece, hit = self._visible(self._detokenizer.flush())
        pieces.append(piece)
        if not hit:
            pieces.append(self._stops.flush())
        return "".join(pieces), "stop" if hit else delta.finish_reason

    def _visible(self, piece: str) -> tuple[str, bool]:
        if not piece:
            return "", False
        if self.count <= self._min_tokens:
            return self._stops.flush() + piece, False
        return self._stops.push(piece)
