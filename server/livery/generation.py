"""One admitted request: its sequences on the engine, turned into text, counted and ended.

The only writer of a request's detokeniser, stop buffer and usage. Knows no HTTP, no names of models and no
admission rules; `service` makes these and `api` consumes them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal, cast

from msgspec import structs

from livery.admission import Admitted
from livery.answer_text import AnswerText, Piece, StopReason, TokenEntry
from livery.engine.base import (
    Engine,
    EngineError,
    EngineRestarting,
    GenerationRequest,
    RequestRefused,
    TokenDelta,
    TokenLogprobs,
)
from livery.engine.figures import PromptRead
from livery.jobs import Options
from livery.metrics import RequestMeter
from livery.reading import TAIL_TOKENS, AnswerReader, CallDelta, Reading
from livery.refusals import DeadlineExceeded, GenerationFailed
from livery.stops import StopSearch
from livery.text import Tokenizer

EndReason = StopReason | Literal["tool_calls"]

# What ends a request by its client's doing. What was computed of its prompts counts then as if their answers had begun:
# whoever leaves early must not compute for nothing. Nor must whoever asks for what fails, as under an adapter that
# overflows; what was computed for an engine that is lost (EngineError) is nobody's to pay.
GIVEN_UP = (asyncio.CancelledError, GeneratorExit, DeadlineExceeded)
UNANSWERED = (*GIVEN_UP, GenerationFailed)


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What is new in one choice: content is `text`. The last delta of a choice carries `finish_reason`,
    and the stop string where it was one.

    `entries` are the tokens whose text begins in this one, and with the last delta all that are left; `scores` those of
    the prompt apart from the text. Both only for requests that ask for them. The first delta of a choice says what its
    prompt is.
    """

    index: int
    text: str
    finish_reason: EndReason | None = None
    entries: tuple[TokenEntry, ...] = ()
    scores: tuple[TokenEntry, ...] = ()
    prompt_token_ids: Sequence[int] | None = None
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    stop_string: str | None = None


@dataclass(slots=True)
class Usage:
    """Tokens of one request: prompts once each, completions over all choices.

    `cached_tokens` of the prompts' were not computed for this request.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class PromptScores:
    """How likely one prompt's tokens are: the run of its first answer tells, and its other answers are told the same.

    Those begin when all of it is known, so that they find the prompt computed: who wants scores computes all of it.
    """

    __slots__ = ("_known", "_told")

    def __init__(self) -> None:
        self._told: list[TokenLogprobs] = []
        self._known = asyncio.Event()

    def take(self, delta: TokenDelta) -> None:
        """What the first answer's run says; when its first token comes, or its end, that is all."""
        self._told += delta.prompt_logprobs
        if delta.token_ids or delta.finish_reason:
            self.end()

    def end(self) -> None:
        """No more comes."""
        self._known.set()

    async def awaited(self, request: GenerationRequest) -> GenerationRequest:
        """Another answer's request, when its time has come. Raises DeadlineExceeded."""
        until = time.perf_counter() + request.deadline_s if request.deadline_s else math.inf
        await self._known.wait()
        return structs.replace(request, deadline_s=seconds_left(until))

    def tell(self, delta: TokenDelta) -> TokenDelta:
        """The first delta of another answer, as if its own run had scored the prompt."""
        return structs.replace(delta, prompt_logprobs=tuple(self._told))


class Generation:
    """One request being answered. Iterate `deltas` once; `close` in any case."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        requests: Sequence[GenerationRequest],
        options: Options,
        meter: RequestMeter,
        usage: Usage,
        admitted: Admitted,
        texts: Sequence[str | None],
        reading: Reading | None = None,
    ) -> None:
        """`requests` come prompt by prompt, as many of each as answers are made. `texts` are the prompts as text.

        Without `reading` all text is content.
        """
        self.usage = usage
        self._answers_each = options.answers_made
        self._engine = engine
        self._requests = list(requests)
        shared = options.scores_prompt and options.answers_made > 1
        self._scores = [PromptScores() if shared else None for _ in range(len(requests) // options.answers_made)]
        stops = StopSearch(options.stop)
        shown = tokenizer.special_tokens(reading.markers) if reading else {}
        self._texts = [
            AnswerText(tokenizer, request, options, stops, text, shown)
            for request, text in zip(requests, texts, strict=True)
        ]
        self._readers = [_reader(tokenizer, request, reading) for request in requests]
        self.meter = meter
        self._admitted = admitted
        self._closed = False
        self._superseded = False
        self._aborting: set[asyncio.Task[None]] = set()
        self._unfinished: Literal["abort", "error"] = "abort"

    async def deltas(self) -> AsyncGenerator[ChoiceDelta]:
        """Text of all choices as it comes. Raises GenerationFailed, EngineDead or RequestRefused."""
        source = self._sequence(0) if len(self._requests) == 1 else self._merged()
        try:
            async with aclosing(source):
                async for delta in source:
                    yield delta
        except (GenerationFailed, EngineError) as error:
            self._unfinished, self.meter.error = "error", words_of(error)
            self.meter.kind = kind_of(error)
            raise
        self.meter.finished()

    @property
    def choices(self) -> int:
        """How many answers there will be: prompts times answers for each."""
        return len(self._requests)

    def supersede(self) -> None:
        """Have all of it end with what there is ("abort"): a later version of its adapter took this one's place."""
        self._superseded = True
        for request in self._requests:
            self._abort(request.request_id)
        for scores in self._scores:
            if scores is not None:
                scores.end()

    def close(self) -> None:
        """Let go of the adapter version and close the books; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.meter.close(self._unfinished)
        self._admitted.release()

    async def _sequence(self, index: int) -> AsyncGenerator[ChoiceDelta]:
        """One sequence's text. Leaving early, as at a stop string, closes the engine's side: an abort."""
        text, first = self._texts[index], index % self._answers_each == 0
        waits = first  # a prompt is one, however many its answers
        meter, read = self.meter.sequence(), PromptRead()
        request, scores = self._requests[index], self._scores[index // self._answers_each]
        if scores is not None and not first:
            request = await scores.awaited(request)
        if self._superseded:  # before the engine was asked
            meter.finished("abort", 0)
            yield ChoiceDelta(index, "", "abort", prompt_token_ids=request.prompt_token_ids)
            return
        # The protocol says iterator; closing it is part of the contract, so it is a generator in fact.
        try:
            async with aclosing(cast(AsyncGenerator[TokenDelta], self._engine.generate(request, read))) as source:
                prompt: Sequence[int] | None = request.prompt_token_ids
                async for tokens in source:
                    if scores is not None:
                        tokens, scores = _scored(tokens, scores, first=first)
                    before = text.count
                    piece = text.push(tokens)
                    waits = self._count(index, tokens, piece, waits=waits)
                    if new := text.count - before:
                        self.usage.completion_tokens += new
                        meter.tokens(new)
                    if tokens.times is not None:
                        meter.begun(tokens.times)
                    for delta in _deltas(index, piece, self._readers[index]):
                        yield replace(delta, prompt_token_ids=prompt)
                        prompt = None
                    if piece.reason:
                        meter.finished(piece.reason, text.count)
                        return
        except UNANSWERED as error:
            if waits:
                count_unanswered(error, request, read, self._admitted, self.usage)
            raise
        raise GenerationFailed("The engine ended this request without a reason.")

    def _count(self, index: int, tokens: TokenDelta, piece: Piece, *, waits: bool) -> bool:
        """Count what a sequence's delta says of its prompt, whose answer hadn't begun (`waits`); does it wait still?

        Raises GenerationFailed for an end that nobody asked for.
        """
        aborted = piece.reason == "abort"
        if aborted and not self._superseded:
            raise GenerationFailed("The engine dropped this request.")
        if self._superseded and piece.reason is None:  # an abort may overtake its request on the way there
            self._abort(self._requests[index].request_id)
        if index % self._answers_each == 0 and (waits or not aborted):
            self.usage.cached_tokens += tokens.cached_tokens  # the others find what the first answer's run has computed
        if waits and (tokens.token_ids or piece.reason):
            whole = len(self._requests[index].prompt_token_ids)
            self._admitted.begun(tokens.prompt_tokens if aborted else whole)
            return False
        return waits

    def _abort(self, request_id: str) -> None:
        task = asyncio.create_task(self._engine.abort(request_id))
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)

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


def count_unanswered(
    error: BaseException, request: GenerationRequest, read: PromptRead, admitted: Admitted, usage: Usage
) -> None:
    """Count what was computed of a prompt whose answer this ended before it began.

    Where the engine didn't say, that is all of what was given up, and nothing of what failed.
    """
    unknown = len(request.prompt_token_ids) if isinstance(error, GIVEN_UP) else 0
    admitted.begun(unknown if read.tokens is None else read.tokens)
    usage.cached_tokens += read.cached


def seconds_left(until: float) -> float:
    """The engine's view of when a job has to be done: seconds from now, 0 for any time. Raises DeadlineExceeded."""
    if until == math.inf:
        return 0.0
    left = until - time.perf_counter()
    if left <= 0:
        raise DeadlineExceeded("The request's time was up before it got to the engine. Allow more time.")
    return left


@asynccontextmanager
async def in_time(until: float) -> AsyncGenerator[None]:
    """Around what comes before the engine is asked: cancelled once a job's time is up. Raises DeadlineExceeded."""
    left = None if until == math.inf else until - time.perf_counter()
    try:
        async with asyncio.timeout(left) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded("The request's time was up before it got to the engine. Allow more time.") from None


def kind_of(error: BaseException) -> str:
    """What failed a request, in one word: the engine's own, or what became of the engine."""
    if isinstance(error, GenerationFailed):
        return error.code
    return "request_refused" if isinstance(error, RequestRefused) else "engine_lost"


def words_of(error: BaseException) -> str:
    """What failed a request, in words fit for its client; those of a lost engine may tell of this machine."""
    fit = isinstance(error, GenerationFailed | RequestRefused | EngineRestarting)
    return str(error) if fit else "The engine failed."


async def _raise_first(task: asyncio.Task[None]) -> None:
    try:
        await task
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _reader(tokenizer: Tokenizer, request: GenerationRequest, reading: Reading | None) -> AnswerReader | None:
    return reading.reader(tokenizer.decode_all(request.prompt_token_ids[-TAIL_TOKENS:])) if reading else None


def _scored(delta: TokenDelta, scores: PromptScores, *, first: bool) -> tuple[TokenDelta, PromptScores | None]:
    """A delta with what there is to say of its prompt, and who is to be asked with the next one."""
    if not first:
        return scores.tell(delta), None
    scores.take(delta)
    return delta, scores


def _deltas(index: int, piece: Piece, reader: AnswerReader | None) -> list[ChoiceDelta]:
    """What there is to say of a piece; its entries come with the first of it, whatever their text is read as."""
    found: list[ChoiceDelta] = []
    if reader is None:
        if piece.text or piece.reason:
            found.append(ChoiceDelta(index, piece.text, piece.reason, stop_string=piece.stop))
    else:
        for read in reader.read(piece.text, last=piece.reason is not None):
            found.append(ChoiceDelta(index, read.text, reasoning=read.reasoning, calls=read.calls))
        if piece.reason:
            called = piece.reason == "stop" and reader.called
            reason = "tool_calls" if called else piece.reason
            found.append(ChoiceDelta(index, "", reason, stop_string=piece.stop))
    if piece.entries or piece.scores:
        first = found[0] if found else ChoiceDelta(index, "")
        found[:1] = [replace(first, entries=piece.entries, scores=piece.scores)]
    return found
