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
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from livery.chat_template import Message
from livery.engine.base import Engine, EngineInfo, EngineStats, GenerationRequest, SamplingParams
from livery.generation import Generation, Usage
from livery.lease import ANYONE, Caller, Lease
from livery.metrics import Metrics, Snapshot
from livery.refusals import ContextLengthExceeded, Draining, InvalidParameter, NotReady, Overloaded, UnknownModel
from livery.served import ServedAdapters
from livery.text import PromptTooLong, Tokenizer
from livery_adapters.names import MIN_DIGEST_PREFIX
from livery_adapters.registry import NamedVersion, RegistryError

log = logging.getLogger("livery.service")

# Characters above which encoding leaves the event loop; below it, a thread costs more than the work.
ENCODE_INLINE_LIMIT = 8192
DIGEST_SHOWN = 12
# An engine that answers no question for so long isn't ready. A step of many tokens takes seconds on a busy CPU.
PROGRESS_TIMEOUT_S = 10.0
REGISTRY_TIMEOUT_S = 5.0  # scrapers give up after 10 seconds as a rule


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the chat template."""

    messages: Sequence[Message]


A = TypeVar("A")
Prompt = ChatPrompt | str | list[int]


@dataclass(frozen=True, slots=True)
class Options:
    """How to answer. `n` answers for each prompt.

    What is None is taken from the adapter's profile, and where that is silent from DEFAULT_SAMPLING. `max_tokens`
    None everywhere: `default_max_tokens` or what the context leaves, whichever is less.
    """

    max_tokens: int | None = None
    default_max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    cache_salt: str = ""  # what is computed for a prompt is shared only with requests of the same salt


DEFAULT_SAMPLING: Mapping[str, float] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class Job:
    """One request as a client put it: the model by name, prompts, options. `request_id` is unique."""

    model: str
    prompts: Sequence[Prompt]
    options: Options
    request_id: str
    prompt_param: str = "messages"  # what the client calls the prompt, for messages
    caller: Caller = ANYONE


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
        count = len(job.prompts) * job.options.n
        self._open += count  # before anything is waited for, so that no other request takes the same room
        lease: Lease | None = None

        def release() -> None:
            self._open -= count
            if lease:
                lease.release()

        try:
            name = job.model or self.base_name
            lease = None if self._is_base(name) else await self.adapters.lease(name, job.caller)
            requests, prompt_tokens = await self._requests(job, lease)
        except BaseException:
            release()
            raise
        name, digest = (lease.name, lease.digest) if lease else (self.base_name, self.info.base_digest)
        generation = Generation(
            self._engine,
            self._tokenizer,
            requests,
            job.options.stop,
            self.metrics.begin(lease.name if lease else None),
            Usage(prompt_tokens=prompt_tokens),
            release,
            answers_each=job.options.n,
        )
        short = digest[:DIGEST_SHOWN]
        return OpenedJob(generation, f"{name}@{short}", f"livery-{self.info.base_digest[:8]}-{short}")

    async def models(self) -> list[ModelCard]:
        """The base first, then adapters and aliases by name."""
        served = await self.adapters.cards()
        limit = self.info.max_model_len
        return [
            self._base_card(),
            *(ModelCard(card.name, int(card.created), card.digest, self.base_name, limit) for card in served),
        ]

    async def model(self, name: str) -> ModelCard:
        """What requests for `name` would get, which may pin a version. Raises UnknownModel."""
        if self._is_base(name):
            return replace(self._base_card(), id=name)
        return self._adapter_card(name, await self.adapters.version(name))

    async def progress(self) -> EngineStats:
        """The engine's numbers, fresh from its loop. Raises EngineDead, or NotReady when it is slow."""
        try:
            async with asyncio.timeout(PROGRESS_TIMEOUT_S):
                return await self._engine.stats()
        except TimeoutError:
            raise NotReady from None

    async def snapshot(self) -> Snapshot:
        """The engine's numbers with digests turned into names, and without them while the registry doesn't answer.

        Raises EngineDead, or NotReady when the engine is slow.
        """
        stats = await self.progress()
        try:
            async with asyncio.timeout(REGISTRY_TIMEOUT_S):
                served, gone = await self.adapters.count(self.metrics.adapters.names())
                resident = await self.adapters.names_of(stats.resident_adapters)
                waiting = await self.adapters.names_of(stats.waiting_adapters)
        except (RegistryError, TimeoutError) as error:
            log.warning("metrics leave out what the registry knows: %s", error or "it doesn't answer in time")
            return Snapshot(stats)
        return Snapshot(stats, served=served, gone=gone, resident=resident, waiting=waiting)

    def _is_base(self, name: str) -> bool:
        """Whether the base model is meant, by its name or pinned by its digest. Raises UnknownModel."""
        plain, at, prefix = name.rpartition("@")
        if name == self.base_name or plain != self.base_name:
            return name == self.base_name
        digest = self.info.base_digest
        if len(prefix) < MIN_DIGEST_PREFIX or not digest.startswith(prefix):
            raise UnknownModel(name, f"the base model served here is {plain}{at}{digest[:DIGEST_SHOWN]}")
        return True

    async def _requests(self, job: Job, lease: Lease | None) -> tuple[list[GenerationRequest], int]:
        """What the engine is asked for, and the tokens of all prompts."""
        prompts = [await self._encode(prompt, job) for prompt in job.prompts]
        profile = lease.facts.profile if lease and lease.facts else {}
        single = len(prompts) * job.options.n == 1
        requests = [
            GenerationRequest(
                job.request_id if single else f"{job.request_id}-{index}-{copy}",
                ids,
                self._sampling(ids, copy, job, profile),
                lease.ref if lease else None,
                _activation(ids, lease, job.prompt_param),
                job.caller.tenant,
                job.options.cache_salt,
            )
            for index, ids in enumerate(prompts)
            for copy in range(job.options.n)
        ]
        return requests, sum(map(len, prompts))

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

    def _sampling(self, prompt_ids: list[int], copy: int, job: Job, profile: Mapping[str, object]) -> SamplingParams:
        """The engine's view of the options for one answer. Raises when it can't fit or can't be met."""
        options = job.options
        chosen = {**DEFAULT_SAMPLING, **profile}
        given = {name: getattr(options, name) for name in DEFAULT_SAMPLING}
        chosen |= {name: value for name, value in given.items() if value is not None}
        limit = self.info.max_model_len
        room = limit - len(prompt_ids)
        if room < 1 or (options.max_tokens or 0) > room:
            raise ContextLengthExceeded(limit, len(prompt_ids), options.max_tokens, job.prompt_param)
        usual = profile.get("max_tokens") or options.default_max_tokens or room
        max_tokens = options.max_tokens or min(int(str(usual)), room)
        if options.min_tokens > max_tokens:
            raise InvalidParameter(
                f"min_tokens is {options.min_tokens} and the answer may have at most {max_tokens}.", "min_tokens"
            )
        self._check_ids(options.stop_token_ids, "stop_token_ids")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=float(str(chosen["temperature"])),
            top_p=float(str(chosen["top_p"])),
            top_k=max(0, int(str(chosen["top_k"]))),  # -1 and 0 both mean off
            min_p=float(str(chosen["min_p"])),
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

    def _adapter_card(self, name: str, version: NamedVersion) -> ModelCard:
        facts = version.facts
        return ModelCard(name, int(version.added), facts.digest, self.base_name, self.info.max_model_len)


def _activation(ids: list[int], lease: Lease | None, param: str) -> int:
    """Where an activated adapter (aLoRA) begins to act: at its invocation tokens, the last time they stand there.

    Greenewald et al., "Activated LoRA", 2025. Raises InvalidParameter when the prompt doesn't invoke it: the base
    would answer in the adapter's name.
    """
    invocation = list(lease.facts.invocation) if lease and lease.facts else []
    if not invocation:
        return 0
    width = len(invocation)
    for start in range(len(ids) - width, -1, -1):
        if ids[start] == invocation[0] and ids[start : start + width] == invocation:
            return start
    raise InvalidParameter(
        f"This adapter acts only after its invocation tokens {invocation[:16]}, which the prompt doesn't hold; add the "
        "text it was trained to be invoked by.",
        param,
    )


async def _off_loop(size: int, work: Callable[[A, int], list[int]], argument: A, room: int) -> list[int]:
    """Run quick work here and long work (by characters) in a thread; tokenizers let go of the GIL."""
    return work(argument, room) if size <= ENCODE_INLINE_LIMIT else await asyncio.to_thread(work, argument, room)
