"""What all requests of one server share: the room there is, and what keys and tenants may ask.

    gate = Gate(Room(1024, 1 << 17), RateLimiter())
    counted = await gate.count(principal)                           # at the door: LimitExceeded
    entry = await gate.enter(principal, Wish(1, 40, 256), counted)  # LimitExceeded, Overloaded, OverShare
    await entry.resize(38, 256)                                     # once the prompts are counted: likewise
    entry.begun(38); entry.spend(100)                               # as it goes on
    entry.leave(); counted.release()

`Gatekeeper` is how it is asked: what one process asks of itself here is asked of another where a server has several
(livery.workers). Nothing here waits.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from livery.tenancy.limits import Claim, RateLimiter, Rates
from livery.tenancy.records import Principal
from livery.tenancy.room import Place, Room


class Wish(NamedTuple):
    """What a request takes: so many sequences, prompt tokens as far as known, and answers' tokens at most."""

    sequences: int = 1
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Held(msgspec.Struct, frozen=True):
    """What is held of the room, by everybody and by tenant, and the most of each."""

    sequences: int = 0
    most_sequences: int = 0
    tokens: int = 0
    most_tokens: int = 0
    sequences_by_tenant: dict[str, int] = {}
    tokens_by_tenant: dict[str, int] = {}


class Counted(Protocol):
    """A request's part of its key's and its tenant's limits."""

    def release(self) -> None:
        """It is over; more calls do nothing."""
        ...


class Entered(Protocol):
    """What a request that was let in holds. Leave it."""

    async def resize(self, prompt_tokens: int, answer_tokens: int) -> None:
        """So many tokens it really is. Raises LimitExceeded, Overloaded or OverShare where these don't fit."""
        ...

    def begun(self, prompt_tokens: int) -> None:
        """So many of its prompt tokens wait no longer."""
        ...

    def spend(self, tokens: int) -> None:
        """So many more tokens were used of those reserved, or beyond."""
        ...

    def leave(self) -> None:
        """It is over; more calls do nothing."""
        ...


class Gatekeeper(Protocol):
    """Who lets requests in."""

    async def count(self, principal: Principal) -> Counted:
        """One of the requests that a key and its tenant may send, whatever it asks for. Raises LimitExceeded."""
        ...

    async def enter(self, principal: Principal, wish: Wish, counted: Counted | None) -> Entered:
        """Let a request in, counted at the door or not. Raises LimitExceeded, Overloaded, OverShare."""
        ...

    def rates(self, principal: Principal) -> Rates:
        """How far limits per minute are used."""
        ...

    async def held(self) -> Held:
        """What is held of the room now."""
        ...


class Entry:
    """What one request holds of a Gate."""

    __slots__ = ("_claim", "_place")

    def __init__(self, place: Place, claim: Claim) -> None:
        self._place = place
        self._claim = claim

    def fit(self, prompt_tokens: int, answer_tokens: int) -> None:
        """As `resize`, at once."""
        self._claim.resize(prompt_tokens, answer_tokens)
        self._place.resize(prompt_tokens)

    async def resize(self, prompt_tokens: int, answer_tokens: int) -> None:
        self.fit(prompt_tokens, answer_tokens)

    def begun(self, prompt_tokens: int) -> None:
        self._place.begun(prompt_tokens)
        self._claim.begun(prompt_tokens)

    def spend(self, tokens: int) -> None:
        self._claim.spend(tokens)

    def leave(self) -> None:
        self._place.leave()
        self._claim.release()


class Gate:
    """The gatekeeper that has room and limits itself. Use from one event loop."""

    def __init__(self, room: Room, limiter: RateLimiter) -> None:
        self.room = room
        self.limiter = limiter

    async def count(self, principal: Principal) -> Counted:
        return self.limiter.claim(principal)

    async def enter(self, principal: Principal, wish: Wish, counted: Counted | None) -> Entered:
        return self.let_in(principal, wish, counted)

    def let_in(self, principal: Principal, wish: Wish, counted: Counted | None) -> Entry:
        """As `enter`, at once: before anything is waited for, so that no other request takes the same room."""
        place = self.room.enter(
            principal.tenant,
            principal.weight,
            wish.sequences,
            wish.prompt_tokens,
            alone=principal.key is None,  # where no key is asked for, all are one tenant
        )
        try:
            if isinstance(counted, Claim):
                counted.resize(wish.prompt_tokens, wish.answer_tokens)
                return Entry(place, counted)
            return Entry(place, self.limiter.claim(principal, wish.prompt_tokens, wish.answer_tokens))
        except BaseException:
            place.leave()
            raise

    def rates(self, principal: Principal) -> Rates:
        return self.limiter.rates(principal)

    async def held(self) -> Held:
        return self.holds()

    def holds(self) -> Held:
        """As `held`, at once."""
        sequences, tokens = self.room.sequences, self.room.tokens
        return Held(sequences.held, sequences.most, tokens.held, tokens.most, sequences.by_tenant(), tokens.by_tenant())
