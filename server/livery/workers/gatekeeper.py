"""The gatekeeper of a worker: it asks the parent, which has the room and all limits of the server.

A key that nothing is limited for is counted without asking; to be let in always takes an answer. What is held is known
by a number, and given back by a message: whoever stops waiting for an answer gives back what it may bring.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from livery.tenancy import Principal
from livery.tenancy.gate import Counted, Entered, Held, Wish
from livery.tenancy.limits import Rates, is_counted
from livery.workers import messages as m
from livery.workers.link import Link

REMEMBERED = 10_000  # keys whose rates are known


def whose(principal: Principal) -> str:
    """Whom rates are of, in one word."""
    return f"{principal.tenant} {principal.key}"


class AskedGate:
    """Use from one event loop. `take` is to be given what the parent says of rates."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._holds = itertools.count(1)
        self._rates: OrderedDict[str, Rates] = OrderedDict()

    def take(self, message: m.Used) -> None:
        self._rates[message.whose] = message.rates
        self._rates.move_to_end(message.whose)
        if len(self._rates) > REMEMBERED:
            self._rates.popitem(last=False)

    async def count(self, principal: Principal) -> Counted:
        hold = _Hold(self._link, next(self._holds) if is_counted(principal) else 0, principal)
        if hold.number:
            await hold.ask(lambda call: m.Count(call, hold.number, principal))
        return hold

    async def enter(self, principal: Principal, wish: Wish, counted: Counted | None) -> Entered:
        hold = _Hold(self._link, next(self._holds), principal)
        before = counted.number if isinstance(counted, _Hold) else 0
        await hold.ask(lambda call: m.Enter(call, hold.number, principal, wish, before))
        return hold

    def rates(self, principal: Principal) -> Rates:
        return self._rates.get(whose(principal), {}) if is_counted(principal) else {}

    async def held(self) -> Held:
        room: m.Room = await self._link.ask(m.Look)
        return room.held


class _Hold:
    """What the parent holds for one request under a number; 0 is for nothing."""

    __slots__ = ("_link", "_principal", "number")

    def __init__(self, link: Link, number: int, principal: Principal) -> None:
        self._link = link
        self._principal = principal
        self.number = number

    async def ask(self, make: Callable[[int], msgspec.Struct]) -> None:
        """Have the parent hold it. Raises what it is refused with, and EngineDead without a parent."""
        try:
            await self._link.ask(make)
        except BaseException:
            self.leave()
            raise

    async def resize(self, prompt_tokens: int, answer_tokens: int) -> None:
        principal = self._principal
        await self._link.ask(lambda call: m.Resize(call, self.number, principal, prompt_tokens, answer_tokens))

    def begun(self, prompt_tokens: int) -> None:
        self._link.send(m.Begun(self.number, prompt_tokens))

    def spend(self, tokens: int) -> None:
        if tokens and is_counted(self._principal):
            self._link.send(m.Spend(self.number, tokens))

    def leave(self) -> None:
        if self.number:
            self._link.send(m.Leave(self.number))
            self.number = 0

    def release(self) -> None:
        self.leave()
