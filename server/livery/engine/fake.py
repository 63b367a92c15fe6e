"""An engine without a model: tokens that can be computed by hand, and failures on demand.

By default a request with the prompt [3, 4] and no adapter answers 7, 8, 9, …: the first token is the sum of
the prompt plus, with an adapter, the first byte of its digest, and each next token is one more, all modulo the
vocabulary. So the prompt [3, 4] on an adapter whose digest starts with `0a` answers 17, 18, 19, ….

Log-probabilities can be computed by hand too: that of token t is -1/4 - t % 4, and the likeliest tokens at its place
are t itself and the ids after it, one less likely each; but where t is a multiple of 5, the ids after it are likelier,
from -1/8 on, and t isn't among them.

A pooled request gets the numbers first, first + 1, …: as many as it wants dimensions, or 2 logits where it asks for a
head. They aren't scaled, whatever it asks for.

A request's deadline is kept where tokens are let out one at a time. A prompt is read before it waits for its first
token, or as far as a test says.

Of a prompt, the blocks of 16 tokens that an earlier one of the same tenant, adapter and salt began with are reported as
cached, but never its last token's.

A test may replace that rule with a script, let tokens out one at a time, make a request fail after some
tokens, and ask what was aborted. Nothing here sleeps: everything waits for an event.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from livery.engine.base import (
    CANARY,
    NOBODY,
    AdapterLoadFailed,
    AdapterRef,
    Asker,
    EngineDead,
    EngineInfo,
    EngineRestarting,
    EngineStats,
    FinishReason,
    GenerationRequest,
    RequestRefused,
    TokenDelta,
    TokenLogprobs,
)
from livery.engine.codes import ADAPTER_TOO_LARGE, DEADLINE_EXCEEDED
from livery.engine.figures import EngineFigures, PromptRead, RequestTimes, TenantStanding
from livery_adapters.base_model import BaseShapes, ModuleShape
from livery_adapters.effect import AdapterEffect

Script = Callable[[GenerationRequest], Sequence[int]]

RETRY_AFTER_S = 7  # of a fake engine that was lost
PAGE_BYTES = 16 << 10  # what any adapter takes
NAN = "the fake engine was told to find no number"


@dataclass(slots=True)
class Behaviour:
    """What a fake engine does besides answering. `script` gives all tokens of a request.

    `stepped`: every token waits for `FakeEngine.step`. `fail_after`: tokens after which a request ends with
    an error. `die_after`: tokens after which the engine dies. `refuse_adapters`: digest -> reason. `together`: tokens
    in one delta, as from a step with drafts. `reads`: tokens of a prompt that are computed or found before its first
    token is let out; None for all.
    """

    script: Script | None = None
    stepped: bool = False
    together: int = 1
    fail_after: int | None = None
    die_after: int | None = None
    reads: int | None = None
    refuse_adapters: dict[str, str] = field(default_factory=dict)
    fail_canary: set[str] = field(default_factory=set)  # digests of adapters whose first run goes wrong


class FakeEngine:
    """The Engine protocol over arithmetic. Use it from one event loop."""

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        vocab_size: int = 256,
        max_model_len: int = 256,
        eos_token_ids: tuple[int, ...] = (),
        modules: Mapping[str, ModuleShape] | None = None,
        hidden_size: int = 16,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.requests: list[GenerationRequest] = []  # every request ever taken
        self.aborted: list[str] = []
        self.loaded: dict[str, AdapterRef] = {}
        self.askers: list[Asker] = []  # of `load_adapter`
        self.proofs: list[GenerationRequest] = []  # first runs of adapters
        self.kept: tuple[str, ...] = ()
        self._seen: set[int] = set()  # beginnings of prompts, whole blocks, each by a hash over the one before it
        self._open: dict[str, GenerationRequest] = {}
        self._permits = asyncio.Semaphore(0)
        self._changed = asyncio.Event()
        self._dead = asyncio.Event()
        self._lost = False
        self._dropped: set[str] = set()
        self._aborts: dict[str, asyncio.Event] = {}
        self._generated = 0
        self._info = EngineInfo(
            architecture="Fake",
            base_digest="fa" * 32,
            device="cpu",
            dtype="none",
            attention="none",
            kernels="none",
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            eos_token_ids=eos_token_ids,
            block_size=16,
            num_blocks=64,
            max_batch_tokens=256,
            max_running=8,
            adapter_memory_bytes=1 << 20,
            weight_bytes=0,
            shapes=BaseShapes(modules or {}, backbone="model", hidden_size=hidden_size),
        )

    async def start(self) -> EngineInfo:
        return self._info

    async def stop(self) -> None:
        await self.die()

    def kill(self) -> None:
        """There is no process."""

    async def die(self) -> None:
        """Stop answering: every open and later request ends with EngineDead."""
        self._dead.set()
        for _ in self._open:
            self._permits.release()
        self._notify()

    def lose(self) -> None:
        """Be as an engine whose process was lost: every open request and whoever comes gets EngineRestarting."""
        self._lost = True
        self._dropped |= set(self._open)
        for _ in self._open:
            self._permits.release()

    def recover(self) -> None:
        """Answer new requests again."""
        self._lost = False

    def _check(self, request_id: str | None = None) -> None:
        """Raise where nothing is answered, or nothing to this request, which was open when the engine was lost."""
        if self._dead.is_set():
            raise EngineDead("the fake engine is stopped")
        if self._lost or request_id in self._dropped:
            raise EngineRestarting(RETRY_AFTER_S)

    async def died(self) -> str:
        await self._dead.wait()
        return "the fake engine is stopped"

    async def generate(self, request: GenerationRequest, read: PromptRead | None = None) -> AsyncIterator[TokenDelta]:
        if request.request_id.startswith(CANARY):
            self.proofs.append(request)
            if 0 < request.resident_bytes < PAGE_BYTES:
                told = f"The adapter takes {PAGE_BYTES} bytes of device memory"
                yield TokenDelta(request.request_id, [], "error", told, code=ADAPTER_TOO_LARGE)
                return
            failed = request.adapter is not None and request.adapter.digest in self.behaviour.fail_canary
            yield TokenDelta(request.request_id, [] if failed else [0], "error" if failed else "length", NAN)
            return
        self._take(request)
        finished = False
        cached = self._cached_tokens(request)
        self._read(request, cached, read or PromptRead())
        began: float | None = asyncio.get_running_loop().time()
        until = asyncio.get_running_loop().time() + request.deadline_s if request.deadline_s else None
        try:
            if request.pooling is not None:
                await self._turn(request.request_id, until)
                finished = True
                yield self._pooled(request, cached)
                return
            tokens = self._tokens(request)
            pending: list[int] = []
            logprobs: list[TokenLogprobs] = []
            wished = request.sampling.prompt_logprobs
            first = max(1, request.sampling.prompt_logprobs_start)
            of_prompt = [] if wished is None else request.prompt_token_ids[first:]
            scores = [logprobs_of(token, wished or 0) for token in of_prompt]
            for index, token in enumerate(tokens):
                await self._turn(request.request_id, until)
                if index == self.behaviour.fail_after:
                    finished = True
                    yield TokenDelta(request.request_id, [], "error", "the fake engine was told to fail")
                    return
                if index == self.behaviour.die_after:
                    await self.die()
                    raise EngineDead("the fake engine was told to die")
                self._generated += 1
                stops = self._stops(request, token, index)
                reason: FinishReason | None = "stop" if stops else "length" if index == len(tokens) - 1 else None
                finished = reason is not None
                pending.append(token)
                if request.sampling.logprobs is not None:
                    logprobs.append(logprobs_of(token, request.sampling.logprobs))
                if not finished and len(pending) < self.behaviour.together:
                    continue
                yield TokenDelta(
                    request.request_id,
                    pending,
                    reason,
                    cached_tokens=cached,
                    logprobs=tuple(logprobs),
                    prompt_logprobs=tuple(scores),
                    times=None if began is None else _times(began),
                )
                began = None
                pending, logprobs, scores, cached = [], [], [], 0
                if finished:
                    return
        except (TimeoutError, _Aborted) as ended:
            finished = True
            yield _cut(request, ended)
        finally:
            self._open.pop(request.request_id, None)
            self._aborts.pop(request.request_id, None)
            if not finished:
                self.aborted.append(request.request_id)
            self._notify()

    async def abort(self, request_id: str) -> None:
        if self._open.pop(request_id, None) is not None:
            self._aborts[request_id].set()
            self.aborted.append(request_id)
            self._notify()

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        self._check()
        if reason := self.behaviour.refuse_adapters.get(adapter.digest):
            raise AdapterLoadFailed(reason)
        self.loaded[adapter.digest] = adapter
        self.askers.append(asker)
        return None

    async def unload_adapter(self, digest: str) -> None:
        self.loaded.pop(digest, None)
        self._notify()

    async def keep_adapters(self, digests: tuple[str, ...]) -> None:
        self.kept = digests

    async def stats(self) -> EngineStats:
        self._check()
        running = {request.adapter.digest for request in self._open.values() if request.adapter}
        return EngineStats(
            running=len(self._open),
            blocks_total=self._info.num_blocks,
            blocks_free=self._info.num_blocks - len(self._open),
            blocks_cached=min(len(self._seen), self._info.num_blocks),
            steps=self._generated,
            generated_tokens=self._generated,
            adapter_bytes=len(self.loaded) * PAGE_BYTES,
            resident_adapters=tuple(self.loaded),
            running_adapters=tuple(sorted(running)),
            figures=EngineFigures(
                tenants=tuple(
                    TenantStanding(tenant, 0, count)
                    for tenant, count in Counter(request.tenant for request in self._open.values()).items()
                )
            ),
        )

    async def ready(self) -> bool:
        return bool(await self.stats())

    def step(self, tokens: int = 1) -> None:
        """Let so many tokens out, over all requests, when `stepped`."""
        for _ in range(tokens):
            self._permits.release()

    async def wait_until(self, condition: Callable[[FakeEngine], bool]) -> None:
        """Return once the condition holds; it is looked at whenever a request or an adapter comes or goes."""
        while not condition(self):
            await self._changed.wait()

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def _take(self, request: GenerationRequest) -> None:
        self._check()
        if request.request_id in self._open:
            raise RequestRefused(f"request id {request.request_id} is already in use")
        self.requests.append(request)
        self._open[request.request_id] = request
        self._aborts[request.request_id] = asyncio.Event()
        self._notify()

    async def _turn(self, request_id: str, until: float | None) -> None:
        """Wait for this token's permit, or give the other requests a chance.

        Raises TimeoutError when time is up, and _Aborted.
        """
        aborted = self._aborts[request_id]
        if self.behaviour.stepped:
            waits = [asyncio.create_task(self._permits.acquire()), asyncio.create_task(aborted.wait())]
            try:
                async with asyncio.timeout_at(until):
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        else:
            await asyncio.sleep(0)
        if aborted.is_set():
            raise _Aborted
        self._check(request_id)

    def _cached_tokens(self, request: GenerationRequest) -> int:
        """How much of the prompt earlier ones began with; from now on this one is an earlier one."""
        size, ids = self._info.block_size, request.prompt_token_ids
        begun = hash(
            (request.tenant, request.account, request.adapter and request.adapter.digest, request.adapter_start)
        )
        begun = hash((begun, request.cache_salt))
        cached, known = 0, True
        for end in range(size, len(ids) + 1, size):
            begun = hash((begun, *ids[end - size : end]))
            known = known and begun in self._seen
            cached += size if known and end < len(ids) else 0
            self._seen.add(begun)
        return cached

    def _read(self, request: GenerationRequest, cached: int, read: PromptRead) -> None:
        whole, reads = len(request.prompt_token_ids), self.behaviour.reads
        read.tokens = whole if reads is None else min(reads, whole)
        read.cached = min(cached, read.tokens)

    def _tokens(self, request: GenerationRequest) -> list[int]:
        limit = request.sampling.max_tokens
        if self.behaviour.script is not None:
            return list(self.behaviour.script(request))[:limit]
        first = self._first(request)
        return [(first + index) % self._info.vocab_size for index in range(limit)]

    def _first(self, request: GenerationRequest) -> int:
        """The number that everything about a request starts with."""
        return sum(request.prompt_token_ids) + (int(request.adapter.digest[:2], 16) if request.adapter else 0)

    def _pooled(self, request: GenerationRequest, cached: int) -> TokenDelta:
        if self.behaviour.fail_after == 0:
            return TokenDelta(request.request_id, [], "error", "the fake engine was told to fail")
        pooling, first = request.pooling, self._first(request)
        assert pooling is not None
        count = 2 if pooling.head else pooling.dimensions or self._info.shapes.hidden_size
        numbers = array("f", range(first, first + count))
        return TokenDelta(request.request_id, [], "stop", cached_tokens=cached, pooled=numbers.tobytes())

    def _stops(self, request: GenerationRequest, token: int, index: int) -> bool:
        sampling = request.sampling
        if index + 1 < sampling.min_tokens:
            return False
        stop_ids = (
            sampling.stop_token_ids if sampling.ignore_eos else (*sampling.stop_token_ids, *self._info.eos_token_ids)
        )
        return token in stop_ids

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Aborted(Exception):
    """A request was dropped."""


def _cut(request: GenerationRequest, ended: Exception) -> TokenDelta:
    """The last delta of a request that was dropped, or whose time is up."""
    if isinstance(ended, _Aborted):
        return TokenDelta(request.request_id, [], "abort", prompt_tokens=len(request.prompt_token_ids))
    return TokenDelta(request.request_id, [], "error", "the request's time is up", code=DEADLINE_EXCEEDED)


def _times(began: float) -> RequestTimes:
    """Nothing waits here; all the time since then was the prompt's."""
    return RequestTimes(0.0, 0.0, asyncio.get_running_loop().time() - began)


def logprobs_of(token: int, count: int) -> TokenLogprobs:
    """What the fake engine says of a token and `count` of the likeliest at its place."""
    own = -0.25 - token % 4
    if token % 5 == 0:
        return TokenLogprobs(own, 100, tuple((token + 1 + place, -0.125 - place) for place in range(count)))
    return TokenLogprobs(own, 1, tuple((token + place, own - place) for place in range(count)))
