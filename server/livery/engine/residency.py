"""Which adapter versions are in device memory, on their way there, or held by running requests.

Decides; moves no bytes. The core carries out what it says: it hands `take_loads()` to the loader, reports back
with `staged` or `failed`, and frees what `take_evictions()` names. A version that a running request pins is
never evicted, and nothing is evicted before its successor is read and verified.

    absent --want--> loading --staged--> staged --placed--> resident --evicted--> absent
                        |--failed--> absent (the waiting requests get the reason)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from livery.engine.base import AdapterRef

MAX_STAGED = 4  # versions being read or waiting for room at a time, beside those in the budget


class Residency:
    """The only writer of what is resident, loading and pinned. Bytes are device bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.resident_bytes = 0
        self.loads = 0
        self.evictions = 0
        self._resident: OrderedDict[str, int] = OrderedDict()  # digest -> bytes, least recently used first
        self._pins: dict[str, int] = {}
        self._loading: dict[str, AdapterRef] = {}
        self._staged: OrderedDict[str, int] = OrderedDict()
        self._to_load: list[AdapterRef] = []
        self._to_evict: list[str] = []
        self._retired: set[str] = set()
        self._kept: frozenset[str] = frozenset()

    # -- asked by the scheduler ----------------------------------------------------------------------

    def is_resident(self, digest: str) -> bool:
        return digest in self._resident

    def want(self, adapter: AdapterRef) -> bool:
        """True when the version can be used now; otherwise see that it gets loaded."""
        self._retired.discard(adapter.digest)
        if adapter.digest in self._resident:
            return True
        if adapter.digest not in self._loading and adapter.digest not in self._staged:
            self._loading[adapter.digest] = adapter
            self._to_load.append(adapter)
        return False

    def pin(self, digest: str) -> None:
        """A running request uses the version: it stays until `unpin`."""
        assert digest in self._resident, "only a resident version can be pinned"
        self._pins[digest] = self._pins.get(digest, 0) + 1
        self._resident.move_to_end(digest)

    def unpin(self, digest: str) -> None:
        self._pins[digest] -= 1
        if self._pins[digest] == 0:
            del self._pins[digest]
            if digest in self._retired:
                self._evict(digest)

    def keep(self, digests: Collection[str]) -> None:
        """An operator wants exactly these to stay in memory: they make room for themselves, and go last.

        They give way only to a request that finds no room otherwise, and come back with their next request.
        """
        self._kept = frozenset(digests)

    # -- told by the core ----------------------------------------------------------------------------

    def staged(self, digest: str, nbytes: int) -> bool:
        """The loader has the version ready, `nbytes` of device memory; False when nobody wants it any more."""
        self._loading.pop(digest, None)
        if digest in self._retired:
            self._retired.discard(digest)
            return False
        self._staged[digest] = nbytes
        return True

    def failed(self, digest: str) -> None:
        """The version could not be loaded. A later request tries again."""
        self._loading.pop(digest, None)
        self._retired.discard(digest)

    def retire(self, digest: str) -> bool:
        """The version is no longer wanted: free it as soon as no request pins it.

        True when that cancels a load that had not begun.
        """
        self._staged.pop(digest, None)
        if digest in self._resident and digest not in self._pins:
            self._evict(digest)
        elif queued := [adapter for adapter in self._to_load if adapter.digest == digest]:
            self._to_load.remove(queued[0])
            del self._loading[digest]
            return True
        elif digest in self._resident or digest in self._loading:
            self._retired.add(digest)
        return False

    def place(self, wanted: Collection[str]) -> list[str]:
        """Move staged versions into the budget; returns those placed.

        A version that is kept or in `wanted` (a request waits for it) may evict unpinned ones; the others only take
        what is free, and are dropped where nothing is: read and verified, they will be read again when somebody asks.
        One that doesn't fit yet stays staged, so that a large one never holds up others.
        """
        placed: list[str] = []
        for digest, nbytes in list(self._staged.items()):
            if digest in wanted or digest in self._kept:
                fits = self._make_room(nbytes, placed, for_request=digest in wanted)
            else:
                fits = self.resident_bytes + nbytes <= self.budget_bytes
            if fits:
                self._resident[digest] = nbytes
                self.resident_bytes += nbytes
                self.loads += 1
                placed.append(digest)
            if fits or digest not in wanted:
                del self._staged[digest]
        return placed

    def is_staged(self, digest: str) -> bool:
        """Read and verified, but without room so far: only finished requests can make some."""
        return digest in self._staged

    def fits(self, nbytes: int) -> bool:
        """Whether a version of this size could ever be placed."""
        return nbytes <= self.budget_bytes

    def take_loads(self) -> list[AdapterRef]:
        """Versions to read now, each named once. What is read but not placed is bounded, as memory is."""
        under_way = len(self._loading) - len(self._to_load) + len(self._staged)
        count = max(0, MAX_STAGED - under_way)
        loads, self._to_load = self._to_load[:count], self._to_load[count:]
        return loads

    def take_evictions(self) -> list[str]:
        """Versions whose device memory is to be freed, each named once."""
        evictions, self._to_evict = self._to_evict, []
        return evictions

    @property
    def resident(self) -> tuple[str, ...]:
        return tuple(self._resident)

    @property
    def pinned(self) -> tuple[str, ...]:
        return tuple(self._pins)

    def _make_room(self, nbytes: int, keep: Collection[str], *, for_request: bool) -> bool:
        missing = self.resident_bytes + nbytes - self.budget_bytes
        victims = []
        # What an operator wants to keep goes last, but it goes: a request that could never run would hold up others.
        for digest, held in sorted(self._resident.items(), key=lambda item: item[0] in self._kept):
            if missing <= 0:
                break
            if digest in self._kept and not for_request:
                break
            if digest not in self._pins and digest not in keep:
                victims.append(digest)
                missing -= held
        if missing > 0:
            return False
        for digest in victims:
            self._evict(digest)
            self.evictions += 1
        return True

    def _evict(self, digest: str) -> None:
        self.resident_bytes -= self._resident.pop(digest)
        self._retired.discard(digest)
        self._to_evict.append(digest)

    def check_invariants(self) -> None:
        """Byte counts add up and whatever is pinned is resident."""
        assert self.resident_bytes == sum(self._resident.values()) <= self.budget_bytes
        assert set(self._pins) <= set(self._resident), "a pinned version is not resident"
        assert not set(self._resident) & (set(self._loading) | set(self._staged)), "loaded twice"
