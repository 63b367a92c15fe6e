"""Requests on their way through vLLM: their adapter made ready, their turn waited for, their answers streamed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import structs
from vllm.exceptions import VLLMClientError, VLLMServerError
from vllm.inputs.engine import tokens_input

from livery.engine.base import (
    AdapterLoadFailed,
    AdapterRef,
    Asker,
    EngineError,
    GenerationRequest,
    RequestRefused,
    TokenDelta,
)
from livery.engine.claims import too_large
from livery.engine.codes import ADAPTER_LOST, ADAPTER_TOO_LARGE, DEADLINE_EXCEEDED
from livery.engine.deadlines import late
from livery.engine.vllm_adapters import VllmAdapters
from livery.engine.vllm_process import VllmProcess
from livery.engine.vllm_queue import VllmQueue
from livery.engine.vllm_sampling import Sampling, delta_of, failed
from livery.engine.vllm_watch import StepCounts

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Open:
    """A request under way. `end` is its last delta where it is aborted or its time is up."""

    end: asyncio.Future[TokenDelta]
    came: float
    loaded_s: float = 0.0  # from when it came until its adapter was there
    waited_s: float = 0.0  # and until it had its turn
    told: bool = False  # to vLLM


class _Ended(Exception):
    """A request is over before vLLM has it."""

    def __init__(self, delta: TokenDelta) -> None:
        super().__init__()
        self.delta = delta


class VllmRequests:
    """Use from one event loop."""

    def __init__(
        self,
        process: VllmProcess,
        adapters: VllmAdapters,
        queue: VllmQueue,
        sampling: Sampling,
        counts: StepCounts,
        adapter_cost: float,
    ) -> None:
        """`adapter_cost`: of a token under an adapter, beside one of the base."""
        self._process, self._adapters, self._queue, self._sampling = process, adapters, queue, sampling
        self._counts, self._adapter_cost = counts, adapter_cost
        self._open: dict[str, _Open] = {}
        self._others: set[asyncio.Task[None]] = set()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta]:
        """As of an engine. Raises RequestRefused before the first delta, and at any time what the process's end is."""
        self._process.check()
        if request.request_id in self._open:
            raise RequestRefused(f"request id {request.request_id!r} is already in use")
        params = self._sampling.params(request)
        try:
            async with (
                self._opened(request) as mine,
                self._adapter(request, mine) as lora,
                self._place(request, mine) as priority,
                aclosing(self._told(request, params, lora, priority)) as outputs,
            ):
                first = True
                async for output in outputs:
                    delta = delta_of(output, request, first)
                    if first and delta.token_ids:
                        first = False
                        self._queue.read(request.request_id, delta.cached_tokens)
                        delta = _timed(delta, mine)
                    self._queue.answered(request.request_id, len(delta.token_ids))
                    if delta.finish_reason == "abort" and mine.end.done() and mine.end.result().error:
                        delta = mine.end.result()
                    yield delta
                    if delta.finish_reason is not None:
                        return
        except _Ended as ended:
            yield ended.delta
        except VLLMClientError as error:
            raise RequestRefused(str(error)) from None
        except VLLMServerError as error:
            if self._process.lost_by(error):
                raise self._process.loss() from None
            log.warning("vLLM failed a request", exc_info=error)
            yield failed(request.request_id, "vLLM failed the request; its log has the reason")

    async def abort(self, request_id: str) -> None:
        """Unknown ids are ignored."""
        await self._end(request_id, TokenDelta(request_id, [], "abort"))

    # -- inside --------------------------------------------------------------------------------------

    def _told(
        self,
        request: GenerationRequest,
        params: Any,  # noqa: ANN401  (vLLM's, as all of these)
        lora: Any,  # noqa: ANN401
        priority: int,
    ) -> Any:  # noqa: ANN401
        """vLLM's answer to a request, as its outputs."""
        prompt = tokens_input(request.prompt_token_ids, cache_salt=cache_salt(request))
        return self._process.llm.generate(prompt, params, request.request_id, lora_request=lora, priority=priority)

    @asynccontextmanager
    async def _opened(self, request: GenerationRequest) -> AsyncIterator[_Open]:
        loop = asyncio.get_running_loop()
        mine = self._open[request.request_id] = _Open(loop.create_future(), time.monotonic())
        timer = loop.call_later(request.deadline_s, self._time_is_up, request) if request.deadline_s else None
        try:
            yield mine
        finally:
            if timer is not None:
                timer.cancel()
            del self._open[request.request_id]

    @asynccontextmanager
    async def _adapter(self, request: GenerationRequest, mine: _Open) -> AsyncIterator[Any]:
        """The request's adapter, held, as vLLM is told of it; None for the base. Raises _Ended."""
        if (adapter := request.adapter) is None:
            yield None
            return
        asker = Asker.of(request)
        if self._queue.is_too_large(asker):
            raise _Ended(failed(request.request_id, too_large(self._queue.slot_bytes, asker), ADAPTER_TOO_LARGE))
        try:
            lora = self._adapters.held(adapter) or await self._hold(adapter, mine)
        except AdapterLoadFailed as lost:
            raise _Ended(failed(request.request_id, str(lost), ADAPTER_LOST)) from lost
        mine.loaded_s = time.monotonic() - mine.came
        try:
            yield lora
        finally:
            await self._adapters.release(adapter.digest)

    async def _hold(self, adapter: AdapterRef, mine: _Open) -> Any:  # noqa: ANN401
        """Its adapter, held, once it is there. Raises _Ended, AdapterLoadFailed, and what the process's end is."""
        holding = asyncio.ensure_future(self._adapters.hold(adapter))
        try:
            return await self._unless_ended(holding, mine)
        except BaseException:
            # It may have come all the same, before the end was noticed; then nobody else would give it back.
            holding.add_done_callback(lambda came: self._give_back(adapter.digest, came))
            raise

    def _give_back(self, digest: str, came: asyncio.Future[Any]) -> None:
        if not came.cancelled() and came.exception() is None:
            self._go_on(self._adapters.release(digest))

    @asynccontextmanager
    async def _place(self, request: GenerationRequest, mine: _Open) -> AsyncIterator[int]:
        """The request's place at vLLM, as the priority that it has there. Raises _Ended."""
        turn = self._queue.enter(request, self._adapter_cost if request.adapter is not None else 1.0)
        try:
            priority = turn.result() if turn.done() else await self._unless_ended(turn, mine)
            if idle := self._queue.take_idle():
                await self._adapters.leave_device(idle)
            if mine.end.done():
                raise _Ended(mine.end.result())
            mine.waited_s = time.monotonic() - mine.came
            mine.told = True
            self._counts.begin()
            yield priority
        finally:
            self._queue.leave(request)

    async def _unless_ended(self, work: Awaitable[T], mine: _Open) -> T:
        """What it comes to. Raises _Ended once the request ends otherwise, and what the process's end is."""
        working = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {working, mine.end}
        try:
            await self._process.call(asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED))
            if mine.end.done():
                raise _Ended(mine.end.result())
            return working.result()
        finally:
            working.cancel()

    def _time_is_up(self, request: GenerationRequest) -> None:
        delta = failed(request.request_id, late(request, "is up"), DEADLINE_EXCEEDED)
        self._go_on(self._end(request.request_id, delta))

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what nobody waits for."""
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _end(self, request_id: str, delta: TokenDelta) -> None:
        mine = self._open.get(request_id)
        if mine is None or mine.end.done():
            return
        mine.end.set_result(delta)
        if mine.told:
            with suppress(EngineError):  # then there is nothing left to abort
                await self._process.call(self._process.llm.abort(request_id))


def _timed(delta: TokenDelta, mine: _Open) -> TokenDelta:
    """The first delta with tokens: before vLLM's own times come those of waiting here."""
    if delta.times is None:
        return delta
    times = structs.replace(delta.times, queue_s=delta.times.queue_s + mine.waited_s, load_s=mine.loaded_s)
    return structs.replace(delta, times=times)


def cache_salt(request: GenerationRequest) -> str:
    """What keeps apart the prefixes of tenants, of tenants that come to have the same name, and of callers' own salts.

    SHA-256 over length-prefixed fields. vLLM adds the adapter by itself; so does this.
    """
    digest = hashlib.sha256(b"livery vllm salt 1")
    adapter = request.adapter.digest if request.adapter is not None else ""
    for field in (request.tenant, request.account, adapter, request.cache_salt):
        data = field.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
