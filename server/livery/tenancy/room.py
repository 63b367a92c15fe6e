"""The waiting room: how many sequences and prompt tokens the server takes in, and how much of that is each tenant's.

    room = Room(max_sequences=1024, max_tokens=1 << 17)
    place = room.enter("acme", 1.0, sequences=2, tokens=400)    # Overloaded, OverShare
    place.resize(380)                                           # once the prompts are counted
    place.begun(190)                                            # an answer began: its prompt waits no longer
    place.leave()                                               # once at least; more calls do nothing

    space = Space("bytes of request bodies", 1 << 28)           # the same for one thing alone
    part = space.enter("acme", 1.0, 2048)                       # Overloaded, OverShare
    part.leave()

No bound is passed. A request larger than half of one counts as half, so that one large request shuts nobody out.
While the room would be over half full, a tenant may hold at most its share by weight, among the tenants that are in the
room and one newcomer of an eighth of the usual weight: so nobody fills the room for others, a place is left for whoever
comes next, and a tenant by itself has eight ninths of the room. While some hold more than their share, as from before
others came, the others share what these leave, in the same way: so who comes first into what was left for newcomers
leaves some of it for the next. A tenant that holds nothing is let in whatever its share is.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping

from livery.refusals import Overloaded

NEWCOMER = 0.125  # weight of whoever may come next, beside the usual 1
NOBODY = ""  # its name, which no tenant has
LATELY_S = 10.0  # how quickly it is forgotten how fast things went
LONGEST_WAIT_S = 60  # the longest that OpenAI's clients honour
UNKNOWN_WAIT_S = 2.0  # where nothing went yet

Clock = Callable[[], float]
Weights = Mapping[str, float]  # of tenants, and of whoever may come next under no name


class OverShare(Exception):
    """A tenant holds its share of a room that others want as well; `retry_after` is in seconds."""

    def __init__(self, tenant: str, held: int, share: int, what: str, retry_after: int) -> None:
        super().__init__(
            f"The server is busy, and {held} {what} of tenant '{tenant}' are open or waiting, where its share is "
            f"{share} as long as others come too. Please retry in {retry_after} s, or send fewer requests at a time."
        )
        self.retry_after = retry_after


class Drain:
    """How much of something goes per second: an average that fades over LATELY_S."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._gone = 0.0
        self._at = clock()

    def went(self, amount: float) -> None:
        self._fade()
        self._gone += amount

    def retry_after(self, amount: float) -> int:
        """Whole seconds until so much has gone at the rate of late, and up to half as long again.

        All who are refused at once don't come back at once.
        """
        self._fade()
        wait = min(amount * LATELY_S / self._gone, LONGEST_WAIT_S) if self._gone else UNKNOWN_WAIT_S
        return min(LONGEST_WAIT_S, max(1, math.ceil(wait * random.uniform(1, 1.5))))

    def _fade(self) -> None:
        now = self._clock()
        self._gone *= math.exp((self._at - now) / LATELY_S)
        self._at = now


class Stock:
    """One thing that there is only so much of: `what` it is called, in the plural, and how much of it."""

    def __init__(self, what: str, most: int, clock: Clock) -> None:
        self.what = what
        self.most = most
        self.held = 0
        self._by: Counter[str] = Counter()
        self._drain = Drain(clock)

    def counted(self, amount: int) -> int:
        """What so much counts as."""
        return min(amount, (self.most + 1) // 2)

    def check(self, tenant: str, amount: int, weights: Weights, had: int = 0) -> None:
        """May a tenant hold so much in place of the `had`? Raises Overloaded, OverShare."""
        if not amount:
            return
        held, own = self.held - had, self._by[tenant] - had
        lacking = held + amount - self.most
        if lacking > 0:
            raise Overloaded(self.held, self.what, self._drain.retry_after(lacking))
        if own <= 0 or 2 * (held + amount) <= self.most:
            return
        share = self.share(tenant, weights)
        above = own + amount - share
        if above > 0:
            raise OverShare(tenant, self._by[tenant], int(share), self.what, self._drain.retry_after(above))

    def share(self, tenant: str, weights: Weights) -> float:
        """How much of it a tenant may hold while it is wanted: by weight, of what those above their share leave.

        Those are found as in water-filling: from who holds most for its weight, each by what is left without it.
        """
        left, whole = float(self.most), sum(weights.values())
        others = [one for one in weights if one != tenant]
        for other in sorted(others, key=lambda one: self._by[one] / weights[one], reverse=True):
            if self._by[other] * whole <= weights[other] * left:
                break
            left -= self._by[other]
            whole -= weights[other]
        return weights[tenant] / whole * left

    def by_tenant(self) -> dict[str, int]:
        """How much of it each tenant holds."""
        return dict(self._by)

    def add(self, tenant: str, amount: int) -> None:
        self.held += amount
        self._by[tenant] += amount

    def remove(self, tenant: str, amount: int, *, drained: bool = True) -> None:
        """`drained`: it is done with, not just counted anew."""
        self.held -= amount
        self._by[tenant] -= amount
        if self._by[tenant] <= 0:
            del self._by[tenant]
        if drained:
            self._drain.went(amount)


class Shared:
    """Who shares something, and by what weights: the tenants that hold a part of it. Use from one event loop."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._parts: Counter[str] = Counter()

    def weights(self, tenant: str, weight: float | None = None, *, alone: bool = False) -> Weights:
        """Of everybody who shares it with a tenant, which has the weight it came with before if none is given.

        `alone`: there is no other tenant, so all of it is its.
        """
        own = self._weights.get(tenant, 1.0) if weight is None else weight
        return {**self._weights, tenant: own, **({} if alone else {NOBODY: NEWCOMER})}

    def came(self, tenant: str, weight: float) -> None:
        self._weights[tenant] = weight
        self._parts[tenant] += 1

    def left(self, tenant: str) -> None:
        """One of a tenant's parts is free."""
        self._parts[tenant] -= 1
        if not self._parts[tenant]:
            del self._parts[tenant], self._weights[tenant]

    def __len__(self) -> int:
        """How many tenants hold a part of it."""
        return len(self._weights)


class Part:
    """What one request holds of one stock."""

    __slots__ = ("_alone", "_amount", "_held", "_here", "_shared", "_stock", "_tenant")

    def __init__(self, shared: Shared, stock: Stock, tenant: str, weight: float, amount: int, *, alone: bool) -> None:
        self._shared = shared
        self._stock = stock
        self._tenant = tenant
        self._alone = alone
        self._amount = amount
        self._held = stock.counted(amount)
        self._here = True
        shared.came(tenant, weight)
        stock.add(tenant, self._held)

    def resize(self, amount: int) -> None:
        """So much it really is. Raises Overloaded or OverShare where that doesn't fit."""
        weights = self._shared.weights(self._tenant, alone=self._alone)
        self._stock.check(self._tenant, self._stock.counted(amount), weights, self._held)
        self.hold(amount)

    def hold(self, amount: int, *, drained: bool = False) -> None:
        """So much from now on, whether it fits or not. `drained`: what is held no longer is done with."""
        if not self._here:
            return
        held = self._stock.counted(amount)
        self._stock.add(self._tenant, held)
        self._stock.remove(self._tenant, self._held, drained=drained)
        self._amount, self._held = amount, held

    def give(self, amount: int) -> None:
        """So much of it is done with."""
        self.hold(self._amount - amount, drained=True)

    def leave(self) -> None:
        """All of it is done with; more calls do nothing."""
        if self._here:
            self.hold(0, drained=True)
            self._here = False
            self._shared.left(self._tenant)


class Space(Shared):
    """Room for one thing, which is called `what`, in the plural."""

    def __init__(self, what: str, most: int, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self.stock = Stock(what, most, clock)

    def enter(self, tenant: str, weight: float, amount: int, *, alone: bool = False) -> Part:
        """A part of it for a request of `tenant`; `alone` as in `weights`. Raises Overloaded, OverShare."""
        weights = self.weights(tenant, weight, alone=alone)
        self.stock.check(tenant, self.stock.counted(amount), weights)
        return Part(self, self.stock, tenant, weight, amount, alone=alone)


class Room(Shared):
    """All that is open or waits."""

    def __init__(self, max_sequences: int, max_tokens: int, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self.sequences = Stock("sequences", max_sequences, clock)  # under way or waiting
        self.tokens = Stock("prompt tokens", max_tokens, clock)  # of answers that haven't begun

    def enter(self, tenant: str, weight: float, sequences: int, tokens: int, *, alone: bool = False) -> Place:
        """A place for a request of `tenant`; `alone` as in `weights`. Raises Overloaded, OverShare."""
        weights = self.weights(tenant, weight, alone=alone)
        self.sequences.check(tenant, max(1, self.sequences.counted(sequences)), weights)
        self.tokens.check(tenant, self.tokens.counted(tokens), weights)
        return Place(
            Part(self, self.sequences, tenant, weight, sequences, alone=alone),
            Part(self, self.tokens, tenant, weight, tokens, alone=alone),
        )


class Place:
    """What one request holds of the room."""

    __slots__ = ("_sequences", "_tokens")

    def __init__(self, sequences: Part, tokens: Part) -> None:
        self._sequences = sequences
        self._tokens = tokens  # that wait

    def resize(self, tokens: int) -> None:
        """So many prompt tokens it really is. Raises Overloaded or OverShare where these don't fit."""
        self._tokens.resize(tokens)

    def begun(self, tokens: int) -> None:
        """So many of its prompt tokens wait no longer."""
        self._tokens.give(tokens)

    def leave(self) -> None:
        self._tokens.leave()
        self._sequences.leave()
