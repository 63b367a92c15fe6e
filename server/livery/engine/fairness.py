"""Whose request is next among tenants, and what each tenant holds of the engine beside its fair share.

Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2): each tenant
has a counter of what was computed for it, divided by its weight, and the waiting tenant with the lowest is served next.
A tenant that comes to wait again is lifted to the lowest counter among those that wait, so that nobody saves up
service by being away. What differs from the paper:

* Tokens are charged as they are computed, not when a request is admitted: prompts are read in chunks.
* A token costs what the device computes for it. A prompt's token costs 1 and an answered one 2, as in the paper, times
  1 + bytes of the adapter / bytes of the base's weights, which is what a step streams more for it. Tokens found in the
  prefix cache and tokens computed again after preemption cost nothing: the first weren't computed, and the second were
  the engine's own wish.
* A tenant whose next request can't run for want of its adapter or of room is passed over, not waited for; one passed
  over too often holds up those behind it (livery.engine.scheduler).
* Running sequences are preempted for tenants that hold less than their share of the engine (livery.engine.turns).

The bound. The paper's theorem 4.4: of two tenants that wait all the time, what they are served differs by at most 2 U,
U = max(w_p * L, w_q * M) with w_p, w_q the costs of a token, L the longest prompt and M the tokens that a running batch
can hold. For: a tenant's counter grows above the lowest of those that wait only by what its running sequences are still
charged after it was last the lowest itself. Here services are divided by weights and U by the lowest weight, and U is
multiplied by the highest cost of an adapter. Chunks charge no more than admission would, preemption only takes away
from what a tenant ahead is still charged. It holds between tenants whose next requests have their adapters and room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

from livery.engine.sequence import Sequence

PROMPT_COST, ANSWER_COST = 1.0, 2.0


@dataclass(slots=True)
class _Account:
    counter: float  # tokens' costs over the weight
    weight: float
    open: int = 0  # requests that wait or run


class VirtualTokens:
    """The only writer of tenants' counters. As large as there are tenants with requests, or ahead of all that wait."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._waiting: Set[str] = frozenset()  # at the last step
        self._waited_last: Set[str] = frozenset()  # at the last step at which anybody did
        self._level = 0.0  # where a tenant begins that comes to wait; only rises
        self._weights = 0.0  # of all with open requests

    @property
    def several(self) -> bool:
        """Whether more than one tenant has requests, or had and may come back ahead of the others."""
        return len(self._accounts) > 1

    def opened(self, tenant: str, weight: float) -> None:
        """A request of a tenant comes, whose weight is so much from now on."""
        account = self._accounts.setdefault(tenant, _Account(self._level, weight))
        account.open += 1
        account.weight = weight

    def closed(self, tenant: str) -> None:
        """A request of a tenant is gone."""
        self._accounts[tenant].open -= 1

    def charge(self, tenant: str, cost: float) -> None:
        account = self._accounts[tenant]
        account.counter += cost / account.weight

    def ahead(self) -> dict[str, float]:
        """How far each tenant's counter is above the lowest of those with open requests."""
        accounts = {tenant: account.counter for tenant, account in self._accounts.items() if account.open}
        lowest = min(accounts.values(), default=0.0)
        return {tenant: counter - lowest for tenant, counter in accounts.items()}

    def counter(self, tenant: str) -> float:
        return self._accounts[tenant].counter

    def share(self, tenant: str) -> float:
        """What part of the engine belongs to a tenant beside all that have open requests, as of the last `settle`."""
        return self._accounts[tenant].weight / self._weights

    def settle(self, waiting: Set[str]) -> None:
        """A step begins and these tenants have requests that wait: lift those that had none at the last one."""
        stayed = self._waiting & waiting
        before = [self._accounts[tenant].counter for tenant in stayed or self._waited_last if tenant in self._accounts]
        if before:
            self._level = max(self._level, min(before))
        for tenant in waiting - stayed:
            account = self._accounts[tenant]
            account.counter = max(account.counter, self._level)
        self._waiting = waiting
        self._waited_last = waiting or self._waited_last
        for tenant in [name for name, one in self._accounts.items() if not one.open and one.counter <= self._level]:
            del self._accounts[tenant]
        self._weights = sum(account.weight for account in self._accounts.values() if account.open)

    def put_in_order(self, sequences: Iterable[Sequence], ready: Callable[[Sequence], bool]) -> None:
        """Tell each sequence when its turn to read its prompt comes: `Sequence.tag`, the lowest first.

        A tenant's come in the order given, each when the counter is what those before it that are `ready` bring it to.
        """
        reached: dict[str, float] = {}
        for sequence in sequences:
            tenant = sequence.tenant
            account = self._accounts[tenant]
            sequence.tag = reached.setdefault(tenant, account.counter)
            if ready(sequence):
                reached[tenant] += prompt_cost(sequence, sequence.uncharged) / account.weight

    def check_invariants(self, open_requests: Mapping[str, int]) -> None:
        counted = {tenant: account.open for tenant, account in self._accounts.items() if account.open}
        assert counted == open_requests, "requests of tenants miscounted"


def prompt_cost(sequence: Sequence, count: int) -> float:
    """What so many tokens of a sequence's prompt cost."""
    return PROMPT_COST * sequence.cost * count


def answer_cost(sequence: Sequence, count: int) -> float:
    """What so many tokens of a sequence's answer cost."""
    return ANSWER_COST * sequence.cost * count


def held_by(running: Iterable[Sequence], max_running: int, num_blocks: int) -> dict[str, float]:
    """What part of the engine each tenant's running sequences hold: of places or of blocks, whichever is more.

    That is a tenant's dominant share (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011).
    """
    places: dict[str, int] = {}
    blocks: dict[str, int] = {}
    for sequence in running:
        places[sequence.tenant] = places.get(sequence.tenant, 0) + 1
        blocks[sequence.tenant] = blocks.get(sequence.tenant, 0) + len(sequence.blocks)
    return {tenant: max(count / max_running, blocks[tenant] / num_blocks) for tenant, count in places.items()}
