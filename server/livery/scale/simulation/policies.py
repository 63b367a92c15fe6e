"""Which replica a request goes to. A policy sees how many requests each replica has and who holds which adapter, now.

What a real router sees is a little older; how much that costs isn't simulated.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from livery.scale.ray_routing import FEW, UNEVEN, Standing, ranked

POINTS = 100  # of each replica on the ring
SLACK = 1.25  # times the mean load that a replica may have before others take its requests
PATIENCE = 4  # requests more than another's that a resident adapter is worth


@dataclass(slots=True)
class View:
    """What a router sees: by replica its requests that haven't ended, by adapter the replicas that have or fetch it.

    `holders` have it on the device. `announced` are those that say they have it, as a replica on Ray does: it was asked
    for there, and is under way or in either memory since.
    """

    loads: list[int]
    holders: dict[int, set[int]] = field(default_factory=dict)
    announced: dict[int, set[int]] = field(default_factory=dict)

    @property
    def bound(self) -> int:
        """The most requests that a replica may have with one more, as SLACK says."""
        return math.ceil(SLACK * (sum(self.loads) + 1) / len(self.loads))


class Policy(ABC):
    """Chooses replicas; `name` is what it is called in results, `says` what it does."""

    name: str
    says: str

    def __init__(self, view: View, seed: int) -> None:
        self.view = view
        self.random = random.Random(seed)

    @abstractmethod
    def choose(self, adapter: int) -> int:
        """The replica for a request for that adapter."""

    def least(self, among: list[int]) -> int:
        """The one with the fewest requests; one of them by chance where several have as few."""
        loads = self.view.loads
        fewest = min(loads[one] for one in among)
        return self.random.choice([one for one in among if loads[one] == fewest])

    def least_of_all(self) -> int:
        fewest = min(self.view.loads)
        return self.random.choice([one for one, load in enumerate(self.view.loads) if load == fewest])


class Random(Policy):
    name = "random"
    says = "any replica"

    def choose(self, adapter: int) -> int:
        return self.random.randrange(len(self.view.loads))


class RoundRobin(Policy):
    name = "round robin"
    says = "the next replica"

    def __init__(self, view: View, seed: int) -> None:
        super().__init__(view, seed)
        self._last = -1

    def choose(self, adapter: int) -> int:
        self._last = (self._last + 1) % len(self.view.loads)
        return self._last


class LeastLoaded(Policy):
    name = "least loaded"
    says = "the replica with the fewest requests"

    def choose(self, adapter: int) -> int:
        return self.least_of_all()


class Hashing(Policy):
    """Karger et al., "Consistent hashing and random trees", STOC 1997."""

    name = "consistent hashing"
    says = "the adapter's place on a ring of replicas, whatever their load"

    def __init__(self, view: View, seed: int) -> None:
        super().__init__(view, seed)
        self._ring = sorted(
            (_hash(f"replica {one} point {point}"), one) for one in range(len(view.loads)) for point in range(POINTS)
        )
        self._places = [place for place, _ in self._ring]

    def from_place(self, adapter: int) -> Iterator[int]:
        """The replicas as they come on the ring from the adapter's place on, some of them several times."""
        start = bisect.bisect(self._places, _hash(f"adapter {adapter}"))
        for place in range(start, start + len(self._ring)):
            yield self._ring[place % len(self._ring)][1]

    def choose(self, adapter: int) -> int:
        return next(self.from_place(adapter))


class BoundedHashing(Hashing):
    """Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018."""

    name = "bounded hashing"
    says = f"the first on the ring with at most {SLACK} times the mean load"

    def choose(self, adapter: int) -> int:
        bound, loads = self.view.bound, self.view.loads
        return next(one for one in self.from_place(adapter) if loads[one] < bound)


class Affinity(Policy):
    """Resident first, spill when busy, cold ones spread.

    As Preble weighs cached work against load (Srivatsa et al., "Preble: efficient distributed prompt scheduling for
    LLM serving", 2024), with the bound of bounded hashing in place of costs.
    """

    name = "affinity"
    says = f"the least loaded that has the adapter, if within {SLACK} times the mean load; else the least loaded of all"

    def choose(self, adapter: int) -> int:
        holders = self.view.holders.get(adapter)
        if holders:
            best = self.least(sorted(holders))
            if self.view.loads[best] < self.view.bound:
                return best
        return self.least_of_all()


class TwoChoices(Policy):
    """Of two that have it and two that are drawn, as Ray Serve's multiplexing does with two at a time.

    Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12(10), 2001.
    """

    name = "two choices"
    says = f"the lesser of two that have the adapter, unless the lesser of any two has {PATIENCE} requests fewer"

    def choose(self, adapter: int) -> int:
        loads = self.view.loads
        count = len(loads)
        any_two = self.least(self.random.sample(range(count), min(2, count)))
        holders = self.view.holders.get(adapter)
        if not holders:
            return any_two
        holding = self.least(self.random.sample(sorted(holders), min(2, len(holders))))
        return holding if loads[holding] <= loads[any_two] + PATIENCE else any_two


class OnRay(Policy):
    """What routes on Ray Serve, by its own code: `livery.scale.ray_routing.ranked`.

    Ray asks the ranks one after the other, and within one the replica with the fewest requests; none refuses here.
    """

    name = "livery on ray"
    says = (
        f"the least loaded that says it has it, within {UNEVEN} times the mean load; else the least loaded of all; "
        "by rendezvous hashing among those with little to do"
    )

    def __init__(self, view: View, seed: int) -> None:
        super().__init__(view, seed)
        self._names = [str(one) for one in range(len(view.loads))]

    def choose(self, adapter: int) -> int:
        having = self.view.announced.get(adapter, ())
        standing = [
            Standing(name, one in having, load)
            for one, (name, load) in enumerate(zip(self._names, self.view.loads, strict=True))
        ]
        first = ranked(str(adapter), standing, FEW)[0]
        return self.least([int(one.replica) for one in first])


POLICIES: tuple[type[Policy], ...] = (
    *(Random, RoundRobin, LeastLoaded, Hashing, BoundedHashing, TwoChoices, OnRay, Affinity),
)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
