"""Vectors in place of text: embeddings, the classes of an adapter's own head, and scores of pairs.

One admitted request is many prompts, of which some are on the engine at a time, so that a long list takes its turns
with other requests. Knows no HTTP and no admission rules; `service` makes these and `api` consumes them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Literal, cast

from msgspec import structs

from livery.admission import Admitted
from livery.beside import ENCODING, beside
from livery.engine.base import Engine, EngineInfo, GenerationRequest, Pooling, TokenDelta
from livery.engine.figures import PromptRead
from livery.generation import UNANSWERED, Usage, count_unanswered, kind_of, seconds_left, words_of
from livery.jobs import PoolingJob
from livery.lease import Lease
from livery.metrics import RequestMeter
from livery.prompts import check_ids
from livery.refusals import AdapterReplaced, ContextLengthExceeded, GenerationFailed, InvalidParameter, failure_of
from livery.text import PromptTooLong, Tokenizer
from livery_adapters.profile import Profile

AT_ONCE = 32  # prompts of one request that are on the engine together
PIECE = 65_536  # characters that are encoded at one go, some 20 ms of a core
EACH = 32  # characters that are encoded in the time that a text takes however short it is

Input = str | list[int] | tuple[str, str]  # ids as they are, two texts as one

ROUTES = {
    "generate": "POST /v1/chat/completions or /v1/completions",
    "embed": "POST /v1/embeddings",
    "classify": "POST /classify",
    "score": "POST /v1/score",
}
_TRAINED = {"embed": "embeddings", "classify": "classification", "generate": "text"}


def check_task(lease: Lease | None, wanted: Literal["generate", "embed", "classify", "score"]) -> None:
    """Was the adapter trained for what is asked of it? Raises InvalidParameter, which names the route that is right.

    Hidden states of an adapter for text are as good as the base's, so they may be asked for.
    """
    task, labels = (lease.task, lease.num_labels) if lease else ("generate", 0)
    if task == wanted or (wanted in ("embed", "score") and task in ("embed", "generate")):
        return
    if wanted == "score" and labels == 1:
        return
    if lease is None:
        raise InvalidParameter(
            "The base model has no classes; name an adapter that was trained for classification.", "model"
        )
    many = f" with {labels} classes, where a score takes one" if wanted == "score" else ""
    raise InvalidParameter(
        f"{lease.name} is an adapter for {_TRAINED[task]}{many}: ask {ROUTES[task]} instead of "
        f"{ROUTES[wanted].removeprefix('POST ')}.",
        "model",
    )


def labels_of(lease: Lease | None, profile: Profile) -> tuple[str, ...]:
    """The names of an adapter's classes: its profile's, else transformers' own; none where it doesn't classify."""
    return profile.labels or tuple(f"LABEL_{at}" for at in range(lease.num_labels if lease else 0))


def pooling_of(job: PoolingJob, lease: Lease | None, profile: Profile, hidden_size: int) -> Pooling:
    """The engine's view of what is asked for. Raises InvalidParameter."""
    if lease is not None and lease.task == "classify":
        return Pooling(head=True)
    if (job.dimensions or 0) > hidden_size:
        raise InvalidParameter(f"This model's embeddings have {hidden_size} dimensions.", "dimensions")
    return Pooling(job.kind or profile.pooling or "last", False, job.dimensions or 0, job.normalize)


async def encode_inputs(
    job: PoolingJob, tokenizer: Tokenizer, info: EngineInfo, vocab_size: int, *, head: bool
) -> list[list[int]]:
    """Token ids of every prompt, or for an adapter's own head of every pair as one text, each below `vocab_size`.

    Long ones are encoded piece by piece in the tenant's turns, up to the first that is wrong: whoever leaves has no
    more than the piece computed that is under way. Raises InvalidParameter or ContextLengthExceeded.
    """
    inputs: Sequence[Input] = job.prompts
    if head and job.pairs:
        texts = job.texts
        inputs = [(texts[one], texts[other]) for one, other in job.pairs]
    found: list[list[int]] = []
    for piece, size in _pieces(inputs):
        made = partial(_encoded, job.prompt_param, tokenizer, info, vocab_size, head=head)
        found += await beside(ENCODING, job.caller.tenant, size, made, piece, len(found))
    return found


def _pieces(inputs: Sequence[Input]) -> Iterator[tuple[list[Input], int]]:
    """Inputs that are encoded at one go, and what that takes in characters."""
    piece: list[Input] = []
    size = 0
    for one in inputs:
        takes = EACH + (sum(map(len, one)) if isinstance(one, tuple) else len(one))
        if piece and size + takes > PIECE:
            yield piece, size
            piece, size = [], 0
        piece.append(one)
        size += takes
    if piece:
        yield piece, size


def _encoded(
    param: str,
    tokenizer: Tokenizer,
    info: EngineInfo,
    vocab_size: int,
    inputs: Sequence[Input],
    first: int,
    *,
    head: bool,
) -> list[list[int]]:
    """Token ids of inputs of which `first` is the first one's place. Blocks, and raises as `encode_inputs`."""
    limit, found = info.max_model_len, []
    for place, one in enumerate(inputs, first):
        try:
            if isinstance(one, tuple):
                ids = tokenizer.encode_pair(*one, limit)
            else:
                ids = tokenizer.encode(one, limit) if isinstance(one, str) else one
        except PromptTooLong as long:
            raise ContextLengthExceeded(limit, long.at_least, None, param, uncounted=True) from None
        check_ids(ids, vocab_size, param)
        if not ids:
            raise InvalidParameter(f"Number {place} of {param} is empty: it encodes to no tokens.", param)
        if len(ids) > limit:
            raise ContextLengthExceeded(limit, len(ids), None, param)
        found.append(without_padding(ids, info.pad_token_id) if head else ids)
    return found


def without_padding(ids: list[int], pad: int | None) -> list[int]:
    """The ids up to the last that isn't padding, whose state transformers' classifiers go by; at least the first."""
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


class PooledAnswer:
    """One request for vectors being answered. Await `vectors` once; `close` in any case."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[GenerationRequest],
        meter: RequestMeter,
        usage: Usage,
        admitted: Admitted,
        until: float = math.inf,
    ) -> None:
        """`until`: when all has to be done (PoolingJob)."""
        self.usage = usage
        self.meter = meter
        self._engine = engine
        self._requests = requests
        self._admitted = admitted
        self._until = until
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._unfinished: Literal["abort", "error"] = "abort"
        self._closed = False
        self._superseded = False
        self._tasks: list[asyncio.Task[bytes]] = []

    async def vectors(self) -> list[bytes]:
        """Each prompt's vector, fp32, in order. Raises GenerationFailed, EngineDead or RequestRefused."""
        try:
            if self._superseded:  # before the engine was asked
                raise AdapterReplaced
            async with asyncio.TaskGroup() as group:
                self._tasks = [group.create_task(self._vector(request)) for request in self._requests]
            if any(task.cancelled() for task in self._tasks):
                raise AdapterReplaced
        except AdapterReplaced as replaced:
            self._failed(replaced)
            raise
        except BaseExceptionGroup as failed:
            self._failed(failed.exceptions[0])
            raise failed.exceptions[0] from None
        self.meter.pooled()
        return [task.result() for task in self._tasks]

    def supersede(self) -> None:
        """Have it fail with AdapterReplaced: some vectors of a list, or of two versions, are of no use."""
        self._superseded = True
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """Let go of the adapter version and close the books; safe to call twice."""
        if not self._closed:
            self._closed = True
            self.meter.close(self._unfinished)
            self._admitted.release()

    def _failed(self, error: BaseException) -> None:
        self._unfinished, self.meter.error, self.meter.kind = "error", words_of(error), kind_of(error)

    async def _vector(self, request: GenerationRequest) -> bytes:
        async with self._turns:
            request = structs.replace(request, deadline_s=seconds_left(self._until))
            meter, read = self.meter.sequence(), PromptRead()
            # The protocol says iterator; closing it is part of the contract, so it is a generator in fact.
            source = cast(AsyncGenerator[TokenDelta], self._engine.generate(request, read))
            try:
                async with aclosing(source):
                    async for delta in source:
                        if delta.finish_reason != "stop":
                            raise failure_of(delta.error or "The engine dropped this request.", delta.code)
                        self.usage.cached_tokens += delta.cached_tokens
                        meter.begun(delta.times)
                        meter.pooled()
                        self._admitted.begun(len(request.prompt_token_ids))
                        return delta.pooled
            except UNANSWERED as error:
                count_unanswered(error, request, read, self._admitted, self.usage)
                raise
        raise GenerationFailed("The engine ended this request without a reason.")
