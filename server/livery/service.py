"""Where a request meets everything: adapters, text, the engine and metrics. Knows no HTTP.

    opened = await service.open(Job("pirate", [ChatPrompt(messages)], Options(), "req_1"))
    try:
        async for delta in opened.generation.deltas(): ...
    finally:
        opened.generation.close()

A request is bound to one adapter version when it is opened and runs on it to the end. Everything a client can
get wrong is refused here, before the engine sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from livery.chat_template import Message
from livery.engine.base import AdapterRef, Engine, EngineInfo, GenerationRequest, SamplingParams
from livery.generation import Generation, Usage
from livery.metrics import Metrics, Snapshot
from livery.refusals import ContextLengthExceeded, Draining, InvalidParameter, NotReady, Overloaded, UnknownModel
from livery.served import ServedAdapters
from livery.text import PromptTooLong, Tokenizer
from livery_adapters.registry import MIN_DIGEST_PREFIX, AdapterVersion

# Characters above which encoding leaves the event loop; below it, a thread costs more than the work.
ENCODE_INLINE_LIMIT = 8192
DIGEST_SHOWN = 12
# An engine that answers no question for so long isn't ready. A step of many tokens takes seconds on a busy CPU.
PROGRESS_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the chat template."""

    messages: Sequence[Message]


A = TypeVar("A")
Prompt = ChatPrompt | str | list[int]


@dataclass(frozen=True, slots=True)
class Options:
    """How to answer. `n` answers for each prompt.

    `max_tokens` None: `default_max_tokens` or what the context leaves, whichever is less.
    """

    max_tokens: int | None = None
    default_max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """One request as a client put it: the model by name, prompts, options. `request_id` is unique."""

    model: str
    prompts: Sequence[Prompt]
    options: Options
    request_id: str
    prompt_param: str = "messages"  # what the client calls the prompt, for messages


@dataclass(frozen=True, slots=True)
class OpenedJob:
    """An admitted request and what serves it: `served_by` is NAME@DIGEST."""

    generation: Generation
    served_by: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One name that requests may use. `parent` is None for the base. `created` is a Unix time."""

    id: str
    created: int
    digest: str
    parent: str | None
    max_model_len: int


class GenerationService:
    """Opens requests and answers what is served. Use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        adapters: ServedAdapters,
        info: EngineInfo,
        *,
        base_name: str,
        created: int,
        max_open: int = 1024,
        metrics_max_adapters: int = 200,
    ) -> None:
        self.info = info
        self.base_name = base_name
        self.adapters = adapters
        self.metrics = Metrics(base_name, info, metrics_max_adapters)
        self._engine = engine
        self._tokenizer = tokenizer
        self._created = created
        self._max_open = max_open
        self._open = 0
        self._draining = False

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Take nothing new from now on; what is open runs to its end."""
        self._draining = True

    async def open(self, job: Job) -> OpenedJob:
        """Admit a request: bind its adapter version, encode its prompts, check that the answer can fit.

        Raises Draining, Overloaded, UnknownModel, AdapterNotReady, AdapterUnusable, InvalidMessages,
        InvalidParameter, ContextLengthExceeded.
        """
        if self._draining:
            raise Draining
        if self._open >= self._max_open:
            raise Overloaded(self._open)
        name = job.model or self.base_name
        lease = None if self._is_base(name) else self.adapters.lease(name)
        ref = AdapterRef.of(lease.version.digest, str(lease.version.path)) if lease else None
        try:
            prompts = [await self._encode(prompt, job) for prompt in job.prompts]
            requests = [
                GenerationRequest(
                    f"{job.request_id}-{index}-{copy}" if len(prompts) * job.options.n > 1 else job.request_id,
                    ids,
                    self._sampling(ids, copy, job),
                    ref,
                )
                for index, ids in enumerate(prompts)
                for copy in range(job.options.n)
            ]
        except BaseException:
            if lease:
                lease.release()
            raise
        self._open += len(requests)

        def release() -> None:
            self._open -= len(requests)
            if lease:
                lease.release()

        name, digest = (lease.name, lease.version.digest) if lease else (self.base_name, self.info.base_digest)
        generation = Generation(
            self._engine,
            self._tokenizer,
            requests,
            job.options.stop,
            self.metrics.begin(lease.name if lease else None),
            Usage(prompt_tokens=sum(map(len, prompts))),
            release,
        )
        short = digest[:DIGEST_SHOWN]
        return OpenedJob(generation, f"{name}@{short}", f"livery-{self.info.base_digest[:8]}-{short}")

    def models(self) -> list[ModelCard]:
        """The base first, then the adapters by name."""
        return [self._base_card(), *(self._adapter_card(name, version) for name, version in self.adapters.active())]

    def model(self, name: str) -> ModelCard:
        """What requests for `name` would get, which may pin a version. Raises UnknownModel."""
        if self._is_base(name):
            return replace(self._base_card(), id=name)
        return self._adapter_card(name, self.adapters.version(name))

    async def snapshot(self) -> Snapshot:
        """The engine's numbers with digests turned into names. Raises EngineDead, or NotReady when it is slow."""
        try:
            async with asyncio.timeout(PROGRESS_TIMEOUT_S):
                stats = await self._engine.stats()
        except TimeoutError:
            raise NotReady from None
        return Snapshot(
            stats,
            served=tuple(name for name, _ in self.adapters.active()),
            resident=self.adapters.names_of(stats.resident_adapters),
            waiting=self.adapters.names_of(stats.waiting_adapters),
        )

    def _is_base(self, name: str) -> bool:
        """Whether the base model is meant, by its name or pinned by its digest. Raises UnknownModel."""
        plain, at, prefix = name.rpartition("@")
        if name == self.base_name or plain != self.base_name:
            return name == self.base_name
        digest = self.info.base_digest
        if len(prefix) < MIN_DIGEST_PREFIX or not digest.startswith(prefix):
            raise UnknownModel(name, f"the base model served here is {plain}{at}{digest[:DIGEST_SHOWN]}")
        return True

    async def _encode(self, prompt: Prompt, job: Job) -> list[int]:
        """Token ids of one prompt. Raises InvalidMessages, InvalidParameter or ContextLengthExceeded."""
        limit = self.info.max_model_len
        try:
            if isinstance(prompt, ChatPrompt):
                size = sum(len(str(message.get("content"))) for message in prompt.messages)
                ids = await _off_loop(size, self._tokenizer.encode_chat, prompt.messages, limit)
            elif isinstance(prompt, str):
                ids = await _off_loop(len(prompt), self._tokenizer.encode, prompt, limit)
            else:
                ids = prompt
                self._check_ids(ids, job.prompt_param)
        except PromptTooLong as long:
            answer = job.options.max_tokens
            raise ContextLengthExceeded(limit, long.at_least, answer, job.prompt_param, uncounted=True) from None
        if not ids:
            raise InvalidParameter("The prompt is empty: it encodes to no tokens.", job.prompt_param)
        return ids

    def _sampling(self, prompt_ids: list[int], copy: int, job: Job) -> SamplingParams:
        """The engine's view of the options for one answer. Raises when it can't fit or can't be met."""
        options = job.options
        limit = self.info.max_model_len
        room = limit - len(prompt_ids)
        if room < 1 or (options.max_tokens or 0) > room:
            raise ContextLengthExceeded(limit, len(prompt_ids), options.max_tokens, job.prompt_param)
        max_tokens = options.max_tokens or min(options.default_max_tokens or room, room)
        if options.min_tokens > max_tokens:
            raise InvalidParameter(
                f"min_tokens is {options.min_tokens} and the answer may have at most {max_tokens}.", "min_tokens"
            )
        self._check_ids(options.stop_token_ids, "stop_token_ids")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            # Answers to one prompt differ from each other and stay reproducible.
            seed=None if options.seed is None else options.seed + copy,
            min_tokens=options.min_tokens,
            stop_token_ids=options.stop_token_ids,
            ignore_eos=options.ignore_eos,
        )

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        """Ids index the logits: one out of range must never reach the engine."""
        size = self.info.vocab_size
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise InvalidParameter(f"Token id {wrong} is outside the vocabulary of {size}.", param)

    def _base_card(self) -> ModelCard:
        info = self.info
        return ModelCard(self.base_name, self._created, info.base_digest, None, info.max_model_len)

    def _adapter_card(self, name: str, version: AdapterVersion) -> ModelCard:
        created = int(version.created)
        return ModelCard(name, created, version.digest, self.base_name, self.info.max_model_len)


async def _off_loop(size: int, work: Callable[[A, int], list[int]], argument: A, room: int) -> list[int]:
    """Run quick work here and long work (by characters) in a thread; tokenizers let go of the GIL."""
    return work(argument, room) if size <= ENCODE_INLINE_LIMIT else await asyncio.to_thread(work, argument, room)
