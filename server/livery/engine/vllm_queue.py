"""Which requests vLLM has, and which wait here for their tenants' turns. Decides; knows vLLM's room and nothing else.

vLLM takes requests in order of arrival, or of a number that each brings and keeps; it knows no tenants. Whose turn it
is changes with every token (livery.engine.fairness), so that is decided here as late as it can be: vLLM has as many
requests as run at once and a few more, which fill places that come free, and the others wait here. Whenever one ends,
the tenant with the lowest counter is next; the counter is the number that its request brings, so those few, and whom
vLLM preempts, are in the same order. Nothing is kept from running that could run.

* A prompt is charged as its request is handed over, as in the paper, and what the prefix cache had of it is given back
  with its first token; answers are charged token by token.
* No more adapters are among the requests handed over than vLLM has slots, those taken that it keeps for pinned ones:
  asked for one more in the same step it would fail. A request whose adapter has no slot is passed over; one passed over
  MAX_SKIPS times holds up those behind it.
* A tenant's adapters take no more slots than its `resident_bytes` allow, each slot in full, as it takes as much device
  memory whatever is in it: the tenant's idle ones leave for its next one, or that waits (livery.engine.claims).

vLLM lets nobody take another's place: who holds all of them with long answers holds them to their ends.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from livery.engine.base import Asker, GenerationRequest
from livery.engine.claims import Claims
from livery.engine.fairness import ANSWER_COST, PROMPT_COST, VirtualTokens
from livery.engine.figures import TenantStanding
from livery.engine.roster import MAX_SKIPS
from livery.engine.tally import standings

SPARE = 8  # one request beyond those that run, for so many that do
FINENESS = 64  # numbers that vLLM orders by are whole ones: so many to a token of a tenant with weight 1


@dataclass(slots=True, eq=False)
class _Entry:
    """A request; `turn` is done once it is handed over, with the number that it brings, or cancelled."""

    request: GenerationRequest
    cost: float  # of a token, beside one of the base alone
    turn: asyncio.Future[int]
    skips: int = 0

    @property
    def digest(self) -> str:
        """Of its adapter; nothing for the base."""
        return self.request.adapter.digest if self.request.adapter is not None else ""

    @property
    def asker(self) -> Asker:
        return Asker.of(self.request)


@dataclass(slots=True)
class _Slots:
    """vLLM's room for adapters on the device, and whom what is there counts for."""

    count: int
    nbytes: int  # of each
    used: Counter[str] = field(default_factory=Counter)  # requests handed over, by adapter
    pinned: frozenset[str] = frozenset()
    claims: Claims = field(default_factory=Claims)
    recent: OrderedDict[str, None] = field(default_factory=OrderedDict)  # adapters claimed, the last used one last

    def has_room(self, digest: str) -> bool:
        """Whether requests under an adapter can be handed over; those of the base (no digest) need no slot.

        Where those that are to be pinned have none yet, the others leave theirs first.
        """
        taken = self.used.keys() | self.pinned
        free = self.count - len(taken)
        return not digest or free > 0 or (free == 0 and digest in taken) or digest in self.pinned & self.used.keys()

    def surplus(self, digest: str, asker: Asker) -> list[str] | None:
        """What a tenant gives up for an adapter, which may be nothing; None where it has to wait."""
        needs_none = not digest or self.claims.is_there_for(digest, asker.tenant)
        return [] if needs_none else self.claims.surplus(asker, self.nbytes, self.recent)

    def claim(self, digest: str, asker: Asker, requests: int) -> None:
        self.claims.add(digest, self.nbytes, asker, requests)
        self.recent[digest] = None
        self.recent.move_to_end(digest)

    def give_up(self, digests: Iterable[str], tenant: str) -> list[str]:
        """Those of them that are there for nobody any more."""
        left = [digest for digest in digests if self.claims.give_up(digest, tenant)]
        for digest in left:
            self.leave(digest)
        return left

    def leave(self, digest: str) -> None:
        self.claims.leave(digest)
        self.recent.pop(digest, None)


class VllmQueue:
    """The only writer of who waits and of tenants' counters. Use from one event loop."""

    def __init__(self, max_running: int, slots: int, slot_bytes: int) -> None:
        """`slots`: adapters that vLLM has on the device at once, each in so many bytes."""
        self._places = max_running + -(-max_running // SPARE)
        self.slot_bytes = slot_bytes
        self._slots = _Slots(slots, slot_bytes)
        self._tokens = VirtualTokens()
        self._waiting: dict[str, dict[str, _Entry]] = {}  # by tenant and id, in order of arrival
        self._handed: dict[str, _Entry] = {}
        self._changed = asyncio.Event()
        self._idle: list[str] = []

    # -- a request's way -----------------------------------------------------------------------------

    def enter(self, request: GenerationRequest, cost: float) -> asyncio.Future[int]:
        """A request comes. What is returned is done when vLLM is to have it, often at once: with its priority there.

        `cost` is that of a token under its adapter beside one of the base. `leave` has to follow, also where the
        waiting is cancelled.
        """
        entry = _Entry(request, cost, asyncio.get_running_loop().create_future())
        self._tokens.opened(request.tenant, request.weight)
        self._waiting.setdefault(request.tenant, {})[request.request_id] = entry
        self._hand_over()
        return entry.turn

    def read(self, request_id: str, cached: int) -> None:
        """Its prompt is read, so many tokens of which were found in the prefix cache."""
        if (entry := self._handed.get(request_id)) is not None and cached:
            self._tokens.charge(entry.request.tenant, -PROMPT_COST * entry.cost * cached)

    def answered(self, request_id: str, tokens: int) -> None:
        if (entry := self._handed.get(request_id)) is not None:
            self._tokens.charge(entry.request.tenant, ANSWER_COST * entry.cost * tokens)

    def leave(self, request: GenerationRequest) -> None:
        """A request that has entered is over, or was given up."""
        tenant, waiting = request.tenant, self._waiting.get(request.tenant, {})
        if (entry := waiting.pop(request.request_id, None)) is not None:
            entry.turn.cancel()
            if not waiting:
                del self._waiting[tenant]
        else:
            entry = self._handed.pop(request.request_id)
            self._release(entry)
        self._tokens.closed(tenant)
        self._hand_over()

    # -- adapters ------------------------------------------------------------------------------------

    def is_too_large(self, asker: Asker) -> bool:
        """Whether any adapter is more than its tenant may have on the device."""
        return self.slot_bytes > asker.limit > 0

    def bring(self, digest: str, asker: Asker) -> bool:
        """An adapter is brought in ahead of requests; whether it may stay on the device within its asker's limit."""
        given_up = self._slots.surplus(digest, asker)
        if given_up is None:
            return False
        self._idle += self._slots.give_up(given_up, asker.tenant)
        self._slots.claim(digest, asker, 0)
        return True

    def forget(self, digest: str) -> None:
        """An adapter is no longer in vLLM's memory."""
        self._slots.leave(digest)

    def take_idle(self) -> list[str]:
        """Adapters that have to leave the device, as their tenants gave them up, since this was last asked."""
        idle, self._idle = self._idle, []
        return [digest for digest in idle if digest not in self._slots.recent]

    def pin(self, digests: Iterable[str]) -> None:
        """From now on slots are taken for these alone beside those of requests."""
        self._slots.pinned = frozenset(digests)
        self._hand_over()

    @property
    def pins_fit(self) -> bool:
        """Whether there are slots for all that are to be pinned, beside those of requests handed over."""
        return len(self._slots.used.keys() | self._slots.pinned) <= self._slots.count

    async def pins_free(self) -> None:
        """Wait until there are."""
        while not self.pins_fit:
            self._changed.clear()
            await self._changed.wait()

    # -- what is told --------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def standings(self) -> tuple[TenantStanding, ...]:
        waiting = [tenant for tenant, entries in self._waiting.items() for _ in entries]
        return standings(waiting, (entry.request.tenant for entry in self._handed.values()), self._tokens.ahead())

    # -- inside --------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Let in whoever can be, and be done with the counters of those that are gone."""
        self._tokens.settle(frozenset(self._waiting))
        while len(self._handed) < self._places and (entry := self._next()) is not None:
            self._let_in(entry)
        self._tokens.settle(frozenset(self._waiting))
        self._changed.set()

    def _next(self) -> _Entry | None:
        passed: list[_Entry] = []
        for entry in self._in_order():
            if self._slots.surplus(entry.digest, entry.asker) is None:
                continue  # a tenant's own limit, which is nobody else's business
            if self._slots.has_room(entry.digest):
                for other in passed:
                    other.skips += 1
                return entry
            if entry.skips > MAX_SKIPS:
                return None
            passed.append(entry)
        return None

    def _in_order(self) -> Iterator[_Entry]:
        tenants = sorted(self._waiting, key=self._tokens.counter) if len(self._waiting) > 1 else [*self._waiting]
        return itertools.chain.from_iterable(self._waiting[tenant].values() for tenant in tenants)

    def _let_in(self, entry: _Entry) -> None:
        request, digest = entry.request, entry.digest
        waiting = self._waiting[request.tenant]
        del waiting[request.request_id]
        if not waiting:
            del self._waiting[request.tenant]
        self._handed[request.request_id] = entry
        if digest:
            given_up = self._slots.surplus(digest, entry.asker) or []
            self._idle += self._slots.give_up(given_up, request.tenant)
            self._slots.claim(digest, entry.asker, 1)
            self._slots.used[digest] += 1
        entry.turn.set_result(round(self._tokens.counter(request.tenant) * FINENESS))
        self._tokens.charge(request.tenant, PROMPT_COST * entry.cost * len(request.prompt_token_ids))

    def _release(self, entry: _Entry) -> None:
        if entry.digest:
            self._slots.used[entry.digest] -= 1
            if not self._slots.used[entry.digest]:
                del self._slots.used[entry.digest]
            self._slots.claims.done(entry.digest, entry.request.tenant)
