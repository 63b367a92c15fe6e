"""Variants computed by an engine: adapters as directories of files, no server and no registry in between."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import cast

from livery.answer_text import AnswerText
from livery.chat_template import InvalidMessages
from livery.engine.base import (
    AdapterLoadFailed,
    AdapterRef,
    Engine,
    EngineInfo,
    GenerationRequest,
    RequestRefused,
    SamplingParams,
    TokenDelta,
)
from livery.evaluation.greedy import greedy
from livery.evaluation.scorer import Likelihood, QuestionRefused, Variant, VariantFailed, first_of
from livery.evaluation.subjects import Message, SubjectUnusable
from livery.jobs import Job
from livery.profiles import dressed, worded
from livery.refusals import ContextLengthExceeded, InvalidParameter
from livery.sampling import sampling_params, stopped_by
from livery.stops import StopSearch
from livery.text import Tokenizer
from livery_adapters.profile import EMPTY, Bounds, Profile


@dataclass(frozen=True, slots=True)
class Voice:
    """How a variant's conversations become tokens: by which template, with which words of its profile."""

    tokenizer: Tokenizer
    profile: Profile = EMPTY


class EngineScorer:
    """A Scorer over a started engine. Prompts that begin alike are computed once for each variant.

    A sequence's last token is made the only one allowed after those before it, so that its likelihood comes without a
    row of its own and what was read is kept for the next: log-probabilities are the model's own, whatever is allowed.
    """

    def __init__(
        self,
        engine: Engine,
        info: EngineInfo,
        tokenizer: Tokenizer,
        adapters: Mapping[str, AdapterRef],
        voices: Mapping[str, Voice] | None = None,
    ) -> None:
        """`adapters` are by their variants' labels, of others the base is computed; so are `voices`, where a variant's
        conversations aren't written as the base's.
        """
        self._engine = engine
        self._info = info
        self._tokenizer = tokenizer
        self._adapters = adapters
        self._voices = voices or {}

    @property
    def longest(self) -> int:
        return self._info.max_model_len

    async def load(self, variant: Variant) -> None:
        """Read a variant's files and try them on the model. Raises VariantFailed."""
        adapter = self._adapters.get(variant.label)
        if adapter is None:
            return
        try:
            await self._engine.load_adapter(adapter)
        except AdapterLoadFailed as failed:
            raise VariantFailed(str(failed)) from failed

    async def beginning(self) -> list[int]:
        return self._tokenizer.beginning()

    async def first_token(self) -> int:
        return await first_of(self)

    async def template(self) -> tuple[str | None, Mapping[str, str]]:
        return self._tokenizer.facts.chat_template, self._tokenizer.facts.named_tokens

    async def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode_bare(text)

    async def chat(self, variant: Variant, messages: Sequence[Message]) -> list[int]:
        voice = self._voice(variant)
        try:
            said = worded([dict(one) for one in messages], voice.profile)
        except InvalidParameter as refused:
            raise QuestionRefused(str(refused)) from refused
        foreign = voice.tokenizer.foreign_template
        encode = partial(voice.tokenizer.encode_chat, said)
        try:
            return await foreign.apart(encode) if foreign else encode()
        except InvalidMessages as invalid:
            raise SubjectUnusable(f"a conversation can't be written as {variant.label}'s prompt: {invalid}") from None

    async def likelihood(self, variant: Variant, tokens: Sequence[int], start: int) -> Likelihood:
        last = len(tokens) - 1
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            ignore_eos=True,
            allowed_token_ids=(tokens[last],),
            logprobs=0,
            prompt_logprobs=0 if start < last else None,
            prompt_logprobs_start=start,
        )
        found = []
        async for delta in self._deltas(self._request(variant, tokens[:last], params)):
            found += [*delta.prompt_logprobs, *delta.logprobs]
        if len(found) != len(tokens) - start:
            raise VariantFailed(f"the engine told {len(found)} log-probabilities of {len(tokens) - start} tokens")
        nbytes = sum(len(self._tokenizer.token_bytes(token)) for token in tokens[start:])
        return Likelihood([one.logprob for one in found], all(one.rank == 1 for one in found), nbytes)

    async def answer(self, variant: Variant, tokens: Sequence[int], most: int, stops: Sequence[str]) -> str:
        voice = self._voice(variant)
        options = greedy(voice.profile.bounds, most, stops)
        try:
            job = dressed(Job(variant.label, [list(tokens)], options, "", "prompt"), voice.profile, None)
            job = stopped_by(job, voice.profile.eos_token, voice.tokenizer.special_tokens)
            adapter = self._adapters.get(variant.label)
            added = adapter.added_tokens if adapter else 0
            params = sampling_params(len(tokens), 0, job, self._info, added_tokens=added)
        except (InvalidParameter, ContextLengthExceeded) as refused:
            raise QuestionRefused(str(refused)) from refused
        request = self._request(variant, tokens, params)
        text = AnswerText(voice.tokenizer, request, job.options, StopSearch(job.options.stop), None)
        pieces: list[str] = []
        async with aclosing(self._deltas(request, QuestionRefused)) as deltas:
            async for delta in deltas:
                piece = text.push(delta)
                pieces.append(piece.text)
                if piece.reason:
                    break
        return "".join(pieces)

    def bounds(self, variant: Variant) -> Bounds:
        return self._voice(variant).profile.bounds

    def _voice(self, variant: Variant) -> Voice:
        return self._voices.get(variant.label, Voice(self._tokenizer))

    def _request(self, variant: Variant, tokens: Sequence[int], params: SamplingParams) -> GenerationRequest:
        return GenerationRequest(uuid.uuid4().hex, list(tokens), params, self._adapters.get(variant.label))

    async def _deltas(
        self, request: GenerationRequest, refused: type[VariantFailed] = VariantFailed
    ) -> AsyncGenerator[TokenDelta]:
        """Raises `refused` for a request that the engine doesn't take, VariantFailed where it fails."""
        try:
            # The protocol says iterator; closing it is part of the contract, so it is a generator in fact.
            async with aclosing(cast(AsyncGenerator[TokenDelta], self._engine.generate(request))) as deltas:
                async for delta in deltas:
                    if delta.finish_reason == "error":
                        raise VariantFailed(delta.error or "the engine couldn't compute it")
                    yield delta
        except RequestRefused as words:
            raise refused(str(words)) from words
