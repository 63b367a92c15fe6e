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
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from livery.adapter_text import AdapterText
from livery.admission import (
    BODY_BYTES,
    Admission,
    Asked,
    asked_by,
    guessed_pairs,
    guessed_tokens,
    set_aside,
    within_limits,
)
from livery.beside import ENCODING, beside
from livery.cards import ModelCard, Tokens, adapter_card, base_card
from livery.engine.base import Engine, EngineInfo, EngineStats, GenerationRequest, SamplingParams
from livery.generation import Generation, Usage, in_time, seconds_left
from livery.grammar_check import GrammarCheck
from livery.jobs import ChatPrompt, Job, PoolingJob, Prompt
from livery.lease import Caller, Lease
from livery.metrics import OTHER, Metrics, RequestMeter
from livery.pooling import AT_ONCE, PooledAnswer, check_task, encode_inputs, labels_of, pooling_of
from livery.profiles import dressed, profile_of, tells_words
from livery.prompts import activation, bad_words, check_ids, encode, token_ids
from livery.reading import AS_THE_TEMPLATE, ParserNames, held_to_strict, reading_of, told_of_tools
from livery.refusals import AdapterUnusable, NotReady, UnknownModel
from livery.roster import Roster
from livery.sampling import sampling_params, stopped_by
from livery.served import ServedAdapters
from livery.survey import Survey
from livery.tenancy import Meter, Principal, scope
from livery.tenancy.gate import Gatekeeper
from livery.text import Tokenizer, TokenizerFacts
from livery.vitals import Readiness
from livery_adapters.identity import DIGEST_SHOWN, fingerprint
from livery_adapters.names import MIN_DIGEST_PREFIX
from livery_adapters.profile import Profile
from livery_adapters.refusal import AdapterRefused

log = logging.getLogger("livery.service")

# An engine that answers no question for so long isn't ready. A step of many tokens takes seconds on a busy CPU.
PROGRESS_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class OpenedJob:
    """An admitted request and what serves it: `served_by` is NAME@DIGEST, `in_full` the same with the name in full."""

    generation: Generation
    served_by: str
    in_full: str
    fingerprint: str
    profile: Profile  # of the adapter version that answers


@dataclass(frozen=True, slots=True)
class OpenedPooling:
    """An admitted request for vectors, what serves it (NAME@DIGEST) and the names of that one's classes."""

    answer: PooledAnswer
    served_by: str
    in_full: str
    labels: tuple[str, ...]


class GenerationService:
    """Opens requests and answers what is served. Use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        text: AdapterText,
        adapters: ServedAdapters,
        grammars: GrammarCheck,
        info: EngineInfo,
        *,
        base_name: str,
        created: int,
        gate: Gatekeeper,
        metrics: Metrics,
        survey: Survey,
        body_bytes: int = BODY_BYTES,
        is_tenant: Callable[[str], bool] = lambda _: True,
        parsers: ParserNames = AS_THE_TEMPLATE,
    ) -> None:
        self.info = info
        self.base_name = base_name
        self.adapters = adapters
        self.metrics = metrics  # where this process counts
        self.survey = survey
        self.grammars = grammars
        self.readiness = Readiness(engine, adapters.vitals)
        self.roster = Roster(adapters.registry)
        self.is_tenant = is_tenant
        self._engine = engine
        self._text = text
        self._created = created
        self.answered, self.restarts = time.monotonic(), 0  # when the engine was last heard of, and what it said
        self._parsers = parsers
        self.admission = Admission(self._lease, gate, Meter(), self.metrics.throttled, body_bytes)

    async def open_to(self, principal: Principal) -> int:
        """Answers under way or waiting, as a caller may know: its tenant's, or all to the operator."""
        held = await self.admission.gate.held()
        return held.sequences if principal.role == "admin" else held.sequences_by_tenant.get(principal.tenant, 0)

    @property
    def draining(self) -> bool:
        return self.admission.draining

    def drain(self) -> None:
        """Take nothing new from now on; what is open runs to its end."""
        self.admission.drain()

    def account(self) -> None:
        """Count what open requests used since the last time, for whoever pays and whoever looks."""
        self.admission.account()
        self.survey.count()

    async def open(self, job: Job) -> OpenedJob:
        """Admit a request: bind its adapter version, encode its prompts, check that the answer can fit.

        Raises Draining, Overloaded, OverShare, LimitExceeded, UnknownModel, AdapterNotReady, AdapterUnusable,
        InvalidMessages, InvalidParameter, GrammarUntried, ContextLengthExceeded, DeadlineExceeded.
        """
        async with in_time(job.until):
            return await self._open(job)

    async def _open(self, job: Job) -> OpenedJob:
        asked = asked_by(job, self.info.max_model_len)
        admitted = await self.admission.admit(job.model, job.caller, asked)
        lease = admitted.lease
        with ExitStack() as undo:  # until there is an answer whose closing does it
            undo.callback(admitted.release)
            check_task(lease, "generate")
            profile = profile_of(lease)
            job = within_limits(dressed(job, profile, lease))
            tokenizer, began = await self._tokenizer_of(lease, job.caller), time.perf_counter()
            reading = reading_of(job, profile, self._parsers, tokenizer.template)
            job = held_to_strict(told_of_tools(job, reading, tokenizer.template), reading, tokenizer.special_tokens)
            with admitted.refusals:
                requests, prompt_tokens = await self._requests(job, lease, tokenizer, profile.eos_token)
            most = [request.sampling.max_tokens for request in requests]
            await admitted.encoded(prompt_tokens, set_aside(job, most))
            name, full_name, digest = self._server_of(lease)
            short, usage, each = digest[:DIGEST_SHOWN], Usage(prompt_tokens=prompt_tokens), job.options.answers_made
            generation = Generation(
                self._engine,
                tokenizer,
                requests,
                job.options,
                self._meter(usage, lease, job.caller, began),
                usage,
                admitted,
                [_echoed(prompt, job) for prompt in job.prompts for _ in range(each)],
                reading,
            )
            admitted.answered(*self._counted_as(lease), job.caller.principal, usage)
            if lease is not None:
                lease.when_superseded(generation.supersede)
            undo.pop_all()
        told = fingerprint(self.info.base_digest, digest)
        return OpenedJob(generation, f"{name}@{short}", f"{full_name}@{short}", told, profile)

    async def pool(self, job: PoolingJob) -> OpenedPooling:
        """Admit a request for vectors, as `open` does one for text."""
        async with in_time(job.until):
            return await self._pool(job)

    async def _pool(self, job: PoolingJob) -> OpenedPooling:
        longest = self.info.max_model_len
        sequences = min(max(len(job.prompts), len(job.pairs)), AT_ONCE)
        asked = Asked(sequences, guessed_tokens(job.prompts, longest))
        admitted = await self.admission.admit(job.model, job.caller, asked)
        lease = admitted.lease
        with ExitStack() as undo:
            undo.callback(admitted.release)
            check_task(lease, job.purpose)
            profile = profile_of(lease)
            pooling = pooling_of(job, lease, profile, self.info.shapes.hidden_size)
            tokenizer, began = await self._tokenizer_of(lease, job.caller), time.perf_counter()
            if pooling.head and job.pairs:  # each is a text: how many tokens that is must fit before they are encoded
                await admitted.encoded(guessed_pairs(job.texts, job.pairs, longest), 0)
            inputs = await encode_inputs(job, tokenizer, self.info, self._vocabulary(lease), head=pooling.head)
            starts = [activation(ids, lease, job.prompt_param) for ids in inputs]
            await admitted.encoded(sum(map(len, inputs)), 0)
            requests = [
                GenerationRequest(
                    f"{job.request_id}-{index}",
                    ids,
                    SamplingParams(max_tokens=1),
                    lease.ref if lease else None,
                    start,
                    job.caller.tenant,
                    job.cache_salt,
                    pooling,
                    weight=job.caller.principal.weight,
                    resident_bytes=job.caller.resident_bytes,
                    account=job.caller.principal.account,
                )
                for index, (ids, start) in enumerate(zip(inputs, starts, strict=True))
            ]
            name, full_name, digest = self._server_of(lease)
            short, labels, usage = digest[:DIGEST_SHOWN], labels_of(lease, profile), Usage(sum(map(len, inputs)))
            meter = self._meter(usage, lease, job.caller, began)
            answer = PooledAnswer(self._engine, requests, meter, usage, admitted, job.until)
            admitted.answered(*self._counted_as(lease), job.caller.principal, usage)
            if lease is not None:
                lease.when_superseded(answer.supersede)
            undo.pop_all()
        return OpenedPooling(answer, f"{name}@{short}", f"{full_name}@{short}", labels)

    async def tokenize(self, job: Job, *, strings: bool) -> Tokens:
        """What the engine would be asked to read for the job's only prompt. Raises as `open` does."""
        async with in_time(job.until), self.admission.visit(job.model, job.caller) as lease:
            profile, tokenizer = profile_of(lease), await self._tokenizer_of(lease, job.caller)
            job = dressed(job, profile, lease)
            reading = reading_of(job, profile, self._parsers, tokenizer.template)
            job = told_of_tools(job, reading, tokenizer.template)
            ids = await token_ids(job.prompts[0], job, tokenizer, self.info.max_model_len, self._vocabulary(lease))
            if isinstance(job.prompts[0], ChatPrompt) and not tells_words(lease, profile):
                return Tokens(len(ids), None, None)
            spelt = await beside(ENCODING, job.caller.tenant, len(ids), tokenizer.strings, ids) if strings else None
            return Tokens(len(ids), ids, spelt)

    async def detokenize(self, model: str, ids: list[int], caller: Caller, until: float = math.inf) -> str:
        """The text of ids, special tokens included, `until` a job's moment. Raises as `open` does."""
        async with in_time(until), self.admission.visit(model, caller) as lease:
            check_ids(ids, self._vocabulary(lease), "tokens")
            tokenizer = await self._tokenizer_of(lease, caller)
            return await beside(ENCODING, caller.tenant, len(ids), tokenizer.decode_all, ids)

    async def tokenizer_facts(self, model: str, caller: Caller, until: float = math.inf) -> TokenizerFacts:
        """Special tokens of a model, and its chat template where it is the caller's to see. Raises as `open` does."""
        async with in_time(until), self.admission.visit(model, caller) as lease:
            facts = (await self._tokenizer_of(lease, caller)).facts
            return facts if tells_words(lease, profile_of(lease)) else replace(facts, chat_template=None)

    async def models(self, caller: Caller) -> list[ModelCard]:
        """What the caller may ask: the base first, then adapters and aliases by name, as the caller knows them."""
        served = await self.adapters.cards(caller.principal)
        limit = self.info.max_model_len
        return [
            *([base_card(self.base_name, self.info, self._created)] if self._may_ask_base(caller) else []),
            *(ModelCard(card.name, int(card.created), card.digest, self.base_name, limit) for card in served),
        ]

    async def model(self, name: str, caller: Caller) -> ModelCard:
        """What the caller's requests for `name` would get, which may pin a version. Raises UnknownModel."""
        if self._is_base(name, caller):
            return replace(base_card(self.base_name, self.info, self._created), id=name)
        return adapter_card(name, await self.adapters.version(name, caller), self.base_name, self.info)

    async def progress(self) -> EngineStats:
        """The engine's numbers, fresh from its loop. Raises EngineDead, or NotReady when it is slow."""
        try:
            async with asyncio.timeout(PROGRESS_TIMEOUT_S):
                stats = await self._engine.stats()
        except TimeoutError:
            raise NotReady from None
        self.answered, self.restarts = time.monotonic(), stats.restarts
        return stats

    async def _lease(self, name: str, caller: Caller) -> Lease | None:
        """A hold on what `name` stands for, None for the base. Raises as `ServedAdapters.lease` does."""
        name = name or self.base_name
        return None if self._is_base(name, caller) else await self.adapters.lease(name, caller)

    def _may_ask_base(self, caller: Caller) -> bool:
        return scope.allows(caller.principal, "base", self.base_name)

    def _is_base(self, name: str, caller: Caller) -> bool:
        """Whether the base model is meant, by its name or pinned by its digest. Raises UnknownModel."""
        plain, at, prefix = name.rpartition("@")
        if self.base_name not in (name, plain):
            return False
        if not self._may_ask_base(caller):
            raise UnknownModel(name)
        if name == self.base_name:
            return True
        digest = self.info.base_digest
        if len(prefix) < MIN_DIGEST_PREFIX or not digest.startswith(prefix):
            raise UnknownModel(name, f"the base model served here is {plain}{at}{digest[:DIGEST_SHOWN]}")
        return True

    def _meter(self, usage: Usage, lease: Lease | None, caller: Caller, encoding: float) -> RequestMeter:
        """The clock of a request that came when its caller says so, and whose prompts began to be encoded then."""
        principal = caller.principal
        name, digest = None, None
        if lease is not None:  # whoever composes adapters makes names: they count together
            name = lease.full_name if lease.facts is not None else OTHER
            digest = lease.ref.digest if lease.ref else None
        tenant, account = principal.tenant, principal.account
        return self.metrics.begin(usage, name, digest, tenant, encoding, account, caller.since)

    def _server_of(self, lease: Lease | None) -> tuple[str, str, str]:
        """What serves a request: its name as the caller knows it, that in full, and its digest."""
        if lease is None:
            return self.base_name, self.base_name, self.info.base_digest
        return lease.name, lease.full_name, lease.digest

    def _counted_as(self, lease: Lease | None) -> tuple[str, str]:
        """The adapter and the version that usage is counted for."""
        return (self.base_name, self.info.base_digest) if lease is None else lease.counted

    def _vocabulary(self, lease: Lease | None) -> int:
        """Below which ids a request to this model may use."""
        return self.info.vocab_size + (lease.added_tokens if lease else 0)

    async def _tokenizer_of(self, lease: Lease | None, caller: Caller) -> Tokenizer:
        """What the text of a caller's requests to a model is encoded and decoded with. Raises AdapterUnusable."""
        added, account = lease.added_tokens if lease else 0, caller.principal.account
        try:
            return await self._text.tokenizer(profile_of(lease), added, account)
        except AdapterRefused as refused:
            name, own = (lease.name, lease.own) if lease else (self.base_name, True)
            raise AdapterUnusable(name, refused.message, own=own) from None

    async def _requests(
        self, job: Job, lease: Lease | None, tokenizer: Tokenizer, ending: str | None
    ) -> tuple[list[GenerationRequest], int]:
        """What the engine is asked for, and the tokens of all prompts. `ending` ends answers as the base's own does."""
        info = self.info
        if job.options.grammar is not None:
            grammar = await self.grammars.check(job.options.grammar, job.options.grammar_param, job.caller.tenant)
            job = replace(job, options=replace(job.options, grammar=grammar))
        job = stopped_by(job, ending, tokenizer.special_tokens)
        vocab = self._vocabulary(lease)
        prompts = [await encode(prompt, job, tokenizer, info.max_model_len, vocab) for prompt in job.prompts]
        each, words = job.options.answers_made, bad_words(job.options.bad_words, tokenizer)
        single, deadline_s = len(prompts) * each == 1, seconds_left(job.until)
        requests = [
            GenerationRequest(
                job.request_id if single else f"{job.request_id}-{index}-{copy}",
                ids,
                sampling_params(len(ids), copy, job, info, words, vocab - info.vocab_size),
                lease.ref if lease else None,
                activation(ids, lease, job.prompt_param),
                job.caller.tenant,
                job.options.cache_salt,
                weight=job.caller.principal.weight,
                resident_bytes=job.caller.resident_bytes,
                deadline_s=deadline_s,
                account=job.caller.principal.account,
            )
            for index, ids in enumerate(prompts)
            for copy in range(each)
        ]
        return requests, sum(map(len, prompts))


def _echoed(prompt: Prompt, job: Job) -> str | None:
    """A prompt as its client put it; None where that isn't a text, or not all of it is read."""
    return prompt if isinstance(prompt, str) and job.options.truncate_prompt_tokens is None else None
