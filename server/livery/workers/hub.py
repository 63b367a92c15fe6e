"""The parent's side of its workers: one engine, one room, one set of limits, for all of them.

    hub = Hub(engine, gate, ledger)
    desk = hub.desk(0)              # for one life of one worker
    await desk.link.open(end)
    await desk.gone.wait()          # its process has ended: what it held is given back, its requests are dropped

A worker's requests run here as tasks over the Engine protocol, so that any engine can be shared. Asked for room or a
limit, a desk answers before it reads on: what is left always comes after what was entered. Whatever goes wrong here,
who asked is answered: a worker waits for nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, cast

import msgspec

from livery.engine import messages as e
from livery.engine.base import (
    AdapterLoadFailed,
    Engine,
    EngineError,
    EngineStats,
    GenerationRequest,
    RequestRefused,
    TokenDelta,
)
from livery.engine.figures import PromptRead
from livery.staging import Staged
from livery.survey import House
from livery.tenancy import Principal
from livery.tenancy.gate import Counted, Entry, Gate
from livery.workers import messages as m
from livery.workers.failures import CROSSING, Failure
from livery.workers.gatekeeper import whose
from livery.workers.ledger import Ledger
from livery.workers.link import Link, Refusal

log = logging.getLogger(__name__)

GATHER_S = 1.0  # that workers may take to say what they counted
DROPPED = "the request was dropped"
NOT_LOADED = "the adapter can't be loaded: something unexpected went wrong, which the server's log tells"
UNEXPECTED = "something unexpected went wrong in the server's first process; its log has the rest"

_NUMBERS = itertools.count(1)  # of what workers are told


class Hub:
    """What workers share. Use from one event loop."""

    def __init__(self, engine: Engine, gate: Gate, ledger: Ledger) -> None:
        self.engine = engine
        self.gate = gate
        self.ledger = ledger
        self.house: Callable[[], House] = House
        self.desks: set[Desk] = set()
        self._answered, self._restarts = time.monotonic(), 0  # when the engine was last heard of, and what it said
        self._kept: tuple[str, ...] = ()

    def desk(self, number: int) -> Desk:
        """One for a new worker of this number, from when its link is opened to the end of its process."""
        return Desk(self, number)

    def uses(self, digest: str, besides: Desk) -> bool:
        """Whether another worker's requests run on a version or wait for it."""
        return any(digest in desk.used for desk in self.desks if desk is not besides)

    def whole_house(self) -> House:
        """The server's processes, and what any of them heard of the engine."""
        return msgspec.structs.replace(self.house(), engine_answered=self._answered, engine_restarts=self._restarts)

    def engine_says(self, stats: EngineStats) -> None:
        self._answered, self._restarts = time.monotonic(), stats.restarts
        self.ledger.engine_says(stats)

    async def gather(self, besides: Desk) -> None:
        """Have every other worker that serves say what it counted; who is slow says it later."""
        await self._told(besides, m.Tell)

    async def spread(self, besides: Desk, told: m.Spread) -> None:
        """Have every other worker that serves know what was changed; who is slow sees it in the database later."""
        await self._told(besides, lambda number: m.Renew(number, told.names, told.keys, told.superseded))

    def incoming(self, besides: Desk) -> m.Incoming:
        """What is on its way into the others."""
        return m.Incoming(sorted({one for desk in self.desks if desk is not besides for one in desk.takes_in}))

    def tell_incoming(self, besides: Desk) -> None:
        """Have all others know: what this one takes in changed."""
        for desk in self.desks:
            if desk is not besides:
                desk.link.send(self.incoming(desk))

    async def _told(self, besides: Desk, make: Callable[[int], msgspec.Struct]) -> None:
        asked = [desk.tell(make) for desk in self.desks if desk is not besides and desk.serving.is_set()]
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await asyncio.gather(*(event.wait() for event in asked))

    async def keep(self, digests: tuple[str, ...]) -> None:
        """Each worker says the same."""
        if digests != self._kept:
            self._kept = digests
            await self.engine.keep_adapters(digests)


class Desk:
    """What one worker has under way."""

    def __init__(self, hub: Hub, number: int) -> None:
        self.number = number
        self.link = Link(m.ToParent, self._take, self._lost)
        self.serving = asyncio.Event()
        self.gone = asyncio.Event()
        self.unable = ""  # why it ended before it served, where it said so
        self._spoke = False
        self.takes_in: list[Staged] = []  # first versions
        self.used: Counter[str] = Counter()  # digests of adapters, by requests and loads
        self._hub = hub
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._held: dict[int, Counted | Entry] = {}
        self._deltas: list[TokenDelta] = []
        self._told: dict[int, asyncio.Event] = {}
        hub.desks.add(self)

    # -- the link --------------------------------------------------------------------------------------

    def _lost(self) -> None:
        """The worker's process is gone."""
        self._hub.desks.discard(self)
        for task in (*self._requests.values(), *self._others):
            task.cancel()
        for hold in list(self._held):
            self._leave(hold)
        for event in self._told.values():
            event.set()
        self._hub.ledger.gone(self.number)
        if self.takes_in:
            self._hub.tell_incoming(self)
        self.gone.set()

    def spoke(self) -> bool:
        """Whether the worker said anything since the last time this was asked."""
        spoke, self._spoke = self._spoke, False
        return spoke

    def tell(self, make: Callable[[int], msgspec.Struct]) -> asyncio.Event:
        """Send what `make` makes of a number; set once the worker has said that it did as it was told."""
        number = next(_NUMBERS)
        event = self._told[number] = asyncio.Event()
        self.link.send(make(number))
        return event

    def _take(self, message: Any) -> None:  # noqa: ANN401  (one of m.ToParent)
        self._spoke = True
        match message:
            case e.Submit(request):
                self._begin(request)
            case e.Abort(request_id):
                if (task := self._requests.get(request_id)) is not None:
                    task.cancel()
            case m.Begun() | m.Spend() | m.Leave():
                self._note(message)
            case m.Count() | m.Enter() | m.Resize():
                self._answer(message)
            case m.Load() | m.Stats() | m.Ready():
                self._run(self._ask_engine, message)
            case e.Unload() | e.Keep():
                self._run(self._tell_engine, message)
            case m.Grown() | m.Renewed() | m.TakesIn() | m.Forget():
                self._know(message)
            case m.Spread() | m.Look() | m.AskBooks() | m.AskLately() | m.AskRunning() | m.AskHouse():
                self._run(self._tell_of_all, message)
            case m.Serving():
                self.serving.set()
            case m.Unable(reason):
                self.unable = reason

    def _run(self, work: Callable[[Any], Awaitable[None]], message: msgspec.Struct) -> None:
        task = asyncio.create_task(self._answered(work, message))
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _answered(self, work: Callable[[Any], Awaitable[None]], message: msgspec.Struct) -> None:
        try:
            await work(message)
            return
        except CROSSING as error:
            told: Exception = error
        except Exception:  # boundary: who asked waits for an answer, whatever it is
            log.exception("worker %d asked for %s, which failed", self.number, type(message).__name__)
            told = AdapterLoadFailed(NOT_LOADED) if isinstance(message, m.Load) else EngineError(UNEXPECTED)
        if (call := getattr(message, "call", None)) is not None:
            self._refuse(call, told)

    # -- room and limits -------------------------------------------------------------------------------

    def _answer(self, message: m.Count | m.Enter | m.Resize) -> None:
        gate, principal = self._hub.gate, message.principal
        try:
            match message:
                case m.Count(hold=hold):
                    self._held[hold] = gate.limiter.claim(principal)
                case m.Enter(hold=hold, wish=wish, counted=counted):
                    before = self._held.get(counted)
                    self._held[hold] = gate.let_in(principal, wish, None if isinstance(before, Entry) else before)
                case m.Resize(hold=hold, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens):
                    if isinstance(entry := self._held.get(hold), Entry):
                        entry.fit(prompt_tokens, answer_tokens)
        except CROSSING as error:
            self._tell_rates(principal)
            self._refuse(message.call, error)
        else:
            self._tell_rates(principal)
            self.link.send(m.Granted(call=message.call))

    def _tell_rates(self, principal: Principal) -> None:
        """Before the answer, so that whoever is answered can tell its client."""
        if rates := self._hub.gate.rates(principal):
            self.link.send(m.Used(whose(principal), rates))

    def _note(self, message: m.Begun | m.Spend | m.Leave) -> None:
        entry = self._held.get(message.hold)
        match message:
            case m.Begun(_, prompt_tokens) if isinstance(entry, Entry):
                entry.begun(prompt_tokens)
            case m.Spend(_, tokens) if isinstance(entry, Entry):
                entry.spend(tokens)
            case m.Leave(hold):
                self._leave(hold)

    def _leave(self, hold: int) -> None:
        match self._held.pop(hold, None):
            case Entry() as entry:
                entry.leave()
            case None:
                pass
            case counted:
                counted.release()

    def _refuse(self, call: int, error: Exception) -> None:
        self.link.send(Refusal(call=call, failure=Failure.of(error)))

    # -- what is counted and known ---------------------------------------------------------------------

    def _know(self, message: m.Grown | m.Renewed | m.TakesIn | m.Forget) -> None:
        ledger = self._hub.ledger
        match message:
            case m.Grown(asked):
                ledger.add(self.number, message)
                self._done(asked)
            case m.Renewed(number):
                self._done(number)
            case m.TakesIn(names):
                self.takes_in = names
                self._hub.tell_incoming(self)
            case m.Forget(adapters, tenants):
                ledger.forget(adapters, tenants)

    def _done(self, number: int) -> None:
        """The worker did what it was told under this number, or (0) something without being told."""
        if number in self._told:
            self._told.pop(number).set()

    async def _tell_of_all(
        self, message: m.Spread | m.Look | m.AskBooks | m.AskLately | m.AskRunning | m.AskHouse
    ) -> None:
        ledger = self._hub.ledger
        match message:
            case m.Spread(call):
                await self._hub.spread(self, message)
                self.link.send(m.Granted(call=call))
            case m.Look(call):
                self.link.send(m.Room(call=call, held=self._hub.gate.holds()))
            case m.AskHouse(call):
                self.link.send(m.Told(call=call, house=self._hub.whole_house()))
            case m.AskBooks(call):
                await self._hub.gather(self)
                self.link.send(ledger.books(call))
            case m.AskRunning(call):
                await self._hub.gather(self)
                self.link.send(m.Running(call=call, rows=ledger.running()))
            case m.AskLately(call, account):
                await self._hub.gather(self)
                self.link.send(m.Doings(call=call, lately=ledger.lately(account, time.perf_counter())))

    # -- the engine ------------------------------------------------------------------------------------

    def _begin(self, request: GenerationRequest) -> None:
        task = asyncio.create_task(self._stream(request))
        self._requests[request.request_id] = task
        task.add_done_callback(lambda ended: self._ended(request.request_id, ended))

    def _ended(self, request_id: str, task: asyncio.Task[None]) -> None:
        self._requests.pop(request_id, None)
        if task.cancelled():  # before it began: it said nothing, and nothing was computed
            self._tell(TokenDelta(request_id, [], "abort"))

    async def _stream(self, request: GenerationRequest) -> None:
        read, begun = PromptRead(), False
        try:
            # The protocol says iterator; closing it is part of the contract, so it is a generator in fact. An engine
            # that is being started anew says so here already.
            source = cast(AsyncGenerator[TokenDelta], self._hub.engine.generate(request, read))
            with self._using(request.adapter.digest if request.adapter else ""):
                async with aclosing(source):
                    async for delta in source:
                        begun = begun or bool(delta.token_ids)
                        self._tell(delta)
        except CROSSING as error:
            self._fail(request.request_id, error)
        except Exception:  # boundary: its client waits for an end, whatever it is
            log.exception("request %s failed", request.request_id)
            self._fail(request.request_id, EngineError(UNEXPECTED))
        except asyncio.CancelledError:  # the worker doesn't want it any more
            if read.tokens is None and not begun:
                self._fail(request.request_id, RequestRefused(DROPPED))
            else:
                self._tell(_left(request.request_id, read))

    def _fail(self, request_id: str, error: Exception) -> None:
        self._flush()
        self.link.send(m.Failed(request_id, Failure.of(error)))

    def _tell(self, delta: TokenDelta) -> None:
        """With all that comes in this turn of the loop: a step's deltas are one message."""
        if not self._deltas:
            asyncio.get_running_loop().call_soon(self._flush)
        self._deltas.append(delta)

    def _flush(self) -> None:
        if self._deltas:
            self.link.send(m.Deltas(self._deltas))
            self._deltas = []

    async def _ask_engine(self, message: m.Load | m.Stats | m.Ready) -> None:
        engine, call = self._hub.engine, message.call
        match message:
            case m.Load(_, adapter, asker):
                with self._using(adapter.digest):
                    effect = await engine.load_adapter(adapter, asker)
                self.link.send(m.Loaded(call=call, effect=effect))
            case m.Stats():
                stats = await engine.stats()
                self._hub.engine_says(stats)
                self.link.send(m.Pong(call=call, stats=stats))
            case m.Ready():
                self.link.send(m.Readiness(call=call, ready=await engine.ready()))

    async def _tell_engine(self, message: e.Unload | e.Keep) -> None:
        match message:
            case e.Unload(digest):
                if not self._hub.uses(digest, self):  # who does says so itself when it is done
                    await self._hub.engine.unload_adapter(digest)
            case e.Keep(digests):
                await self._hub.keep(digests)

    @contextmanager
    def _using(self, digest: str) -> Iterator[None]:
        self.used[digest] += 1
        try:
            yield
        finally:
            self.used[digest] -= 1
            if not self.used[digest]:
                del self.used[digest]


def _left(request_id: str, read: PromptRead) -> TokenDelta:
    """The last delta of a request that was given up, which says how far it was."""
    return TokenDelta(request_id, [], "abort", prompt_tokens=read.tokens or 0, cached_tokens=read.cached)
