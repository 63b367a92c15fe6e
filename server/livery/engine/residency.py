"""Where adapter versions are: in device memory, in host memory, on their way, or only in the store.

Decides; moves no bytes. The core carries out what it says: it has `take_loads()` read, copies or maps what `place()`
gives pages to, frees what `take_evictions()` and `take_drops()` name, and reports back. A version that a running
request pins is never evicted, nothing is evicted before its successor is read and verified, and leaving the device
leaves the host's image, so that coming back costs one copy.

    absent --want--> loading --hosted--> hosted --place--> placing --placed--> resident
       ^                 |                 |  ^                                   |
       +-----failed------+                 |  +-------------evicted---------------+
       +----------------dropped------------+

Who goes when room is needed: first what no waiting request wants, what an operator keeps last of it and else what is
there for tenants above their share first (claims.py), by cost (eviction.py); then what requests further back in the
queue want, the last first. So a request makes room only at the cost of those behind it, and two never throw each other
out in turns. A tenant that may take only so much gives up its own for what it asks for, or waits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from livery.engine.base import NOBODY, AdapterRef, Asker
from livery.engine.claims import Claims
from livery.engine.eviction import GreedyDual
from livery.engine.held_back import HeldBack
from livery.engine.pages import PAGE_BYTES, PageAllocator, PageCount, Run, pages_for, spans
from livery.engine.reads import LAST, NOT_WANTED, ReadQueue, last_within
from livery.engine.versions import Placement, Version


class Residency:
    """The only writer of what is resident, hosted, loading and pinned."""

    def __init__(self, budget_bytes: int, host_budget_bytes: int = 0, *, one_memory: bool = False) -> None:
        """`one_memory`: the device computes on the host's images, so a version counts in one tier at a time."""
        self.host_budget_bytes = host_budget_bytes
        self.loads_from_store = 0
        self.loads_from_host = 0
        self.evictions = 0
        self._one_memory = one_memory
        self._pages = (PageCount if one_memory else PageAllocator)(budget_bytes // PAGE_BYTES)
        self._versions: dict[str, Version] = {}
        self._resident = GreedyDual()
        self._host = GreedyDual()
        self._placing: set[str] = set()
        self._arrived: dict[str, tuple[Asker, ...]] = {}  # hosted, not yet tried to place, and asked for by these
        self._pins: dict[str, int] = {}
        self._loading = ReadQueue()
        self._to_evict: list[str] = []
        self._to_drop: list[str] = []
        self._retired: set[str] = set()
        self._kept: frozenset[str] = frozenset()
        self._ranks: dict[str, int] = {}  # place in the queue of waiting requests
        self._claims = Claims()
        self._askers: Mapping[str, Sequence[Asker]] = {}  # tenants whose requests wait for a version
        self.limited = HeldBack()  # read, and all tenants that wait for it are at their limits

    # -- asked by the scheduler ----------------------------------------------------------------------

    def is_resident(self, digest: str) -> bool:
        return digest in self._resident

    def is_open_to(self, digest: str, asker: Asker) -> bool:
        """Whether the version can be used now, and counting it for a tenant leaves that one within its limit."""
        if digest not in self._resident or not asker.limit or self._claims.is_there_for(digest, asker.tenant):
            return digest in self._resident
        return self._claims.surplus(asker, self.nbytes(digest), self._behind(digest, asker.tenant)) is not None

    def nbytes(self, digest: str) -> int:
        """What a version takes, that is in some memory or held back by limits."""
        version = self._versions.get(digest)
        return version.nbytes if version else self.limited.nbytes(digest)

    def want(self, adapter: AdapterRef) -> bool:
        """True when the version can be used now; otherwise see that it gets loaded."""
        digest = adapter.digest
        self._retired.discard(digest)
        if digest in self._resident:
            return True
        self._ranks.setdefault(digest, len(self._ranks))
        if digest not in self._versions:
            self._loading.add(adapter)
        return False

    def lacks_room(self, digest: str) -> bool:
        """Read and verified, but without room on the device so far."""
        return digest in self._host and not self._versions[digest].on_device

    def frees_enough(self, digest: str, unpinned: Collection[str]) -> bool:
        """Whether the version would have room if no request pinned those any more; also without evicting them all."""
        gone = (other for other in self._resident if other not in self._pins or other in unpinned)
        return self._fits_without(self._versions[digest], gone)

    def pin(self, digest: str, asker: Asker = NOBODY) -> None:
        """A running request uses the version: it stays until `unpin`, and counts for the request's tenant."""
        assert digest in self._resident, "only a resident version can be pinned"
        if asker.limit and not self._claims.is_there_for(digest, asker.tenant):
            for other in self._claims.surplus(asker, self.nbytes(digest), self._behind(digest, asker.tenant)) or ():
                if self._claims.give_up(other, asker.tenant) and other not in self._pins:
                    self._evict(other)
        self._pins[digest] = self._pins.get(digest, 0) + 1
        self._claims.add(digest, self._versions[digest].nbytes, asker, 1)
        self._use(digest)

    def unpin(self, digest: str, tenant: str = NOBODY.tenant) -> None:
        self._claims.done(digest, tenant)
        self._pins[digest] -= 1
        if self._pins[digest] == 0:
            del self._pins[digest]
            if digest in self._retired:
                self._forget(digest)

    # -- asked for by the service --------------------------------------------------------------------

    def load(self, adapter: AdapterRef, asker: Asker = NOBODY) -> bool:
        """Bring a version into memory though no request waits for it; True when it is there already."""
        digest = adapter.digest
        self._retired.discard(digest)
        if digest in self._versions:
            return True
        self._loading.add(adapter, asker)
        return False

    def keep(self, digests: Collection[str]) -> None:
        """An operator wants exactly these to stay in memory: they make room for themselves, and go last.

        They give way only to a request that finds no room otherwise, and come back with their next request.
        """
        self._kept = frozenset(digests)
        self._arrived |= dict.fromkeys((digest for digest in self._host if digest in self._kept), ())

    def evict(self, digest: str) -> bool:
        """Give a version's device memory back unless a request uses it; its image stays in host memory."""
        if digest not in self._resident or digest in self._pins:
            return False
        self.evictions += 1
        self._leave_device(digest)
        return True

    def retire(self, digest: str) -> bool:
        """The version is no longer wanted: free it as soon as no request pins it.

        True when that cancels a load that had not begun.
        """
        if digest in self._loading and not self._loading.begun(digest):
            self._loading.end(digest)
            return True
        if digest in self._pins or digest in self._placing or digest in self._loading:
            self._retired.add(digest)
        elif digest in self._versions:
            self._forget(digest)
        return False

    # -- told by the core ----------------------------------------------------------------------------

    def expect(self, queue: Iterable[str], askers: Mapping[str, Sequence[Asker]] | None = None) -> None:
        """The versions that waiting requests ask for, the first in the queue first, and their tenants."""
        self._askers = askers or {}
        self._ranks = {}
        for digest in queue:
            self._ranks.setdefault(digest, len(self._ranks))

    def hosted(self, digest: str, sizes: Sequence[int], seconds: float) -> bool:
        """The version is read, verified and in host memory; False when nobody wants it any more.

        `sizes` are the bytes of its pieces; reading took so many seconds.
        """
        askers = self._loading.end(digest)
        if digest in self._retired:
            self._retired.discard(digest)
            return False
        self._versions[digest] = Version(tuple(sizes), sum(map(pages_for, sizes)), sum(sizes), seconds)
        self._arrived[digest] = askers
        # What nobody waits for comes without any standing, and so replaces nothing.
        self._host.use(digest, sum(sizes), seconds if self._rank(digest) < NOT_WANTED else 0.0)
        return True

    def read_elsewhere(self, digest: str, others: Iterable[AdapterRef]) -> bool:
        """The version could not be read: `take_loads()` gives it again if it was asked for at another place too.

        `others` are the places that waiting requests name. False when all were tried.
        """
        return digest not in self._retired and self._loading.elsewhere(digest, others)

    def failed(self, digest: str) -> None:
        """The version could not be loaded. A later request tries again."""
        self._loading.end(digest)
        self._retired.discard(digest)

    def place(self) -> list[Placement]:
        """Give device memory to hosted versions; the core copies them there, once it has carried out the evictions.

        A version that a request waits for may make others go, one that is kept those that are neither; others take
        what is free when they arrive. One that doesn't fit stays hosted, so that a large one never holds up others.
        """
        wanted = [digest for digest in self._ranks if self.lacks_room(digest)]
        arrived, self._arrived = self._arrived, {}
        others = [digest for digest in arrived if digest not in self._ranks and self.lacks_room(digest)]
        self.limited.begin(self._ranks, self._askers, self._versions)
        placements = []
        for digest in [*wanted, *sorted(others, key=lambda digest: digest not in self._kept)]:
            version, askers = self._versions[digest], self._askers.get(digest) or arrived.get(digest)
            found = self._claims.first_with_room(askers or (NOBODY,), version.nbytes, partial(self._behind, digest))
            if found is None:
                self.limited.add(digest, version.nbytes)
            elif (runs := self._allocate(digest, *found)) is not None:
                if askers:
                    self._claims.add(digest, version.nbytes, found[0], 0)
                version.runs, version.on_device = spans(runs), True
                self._placing.add(digest)
                self.loads_from_host += version.placed_before
                self.loads_from_store += not version.placed_before
                version.placed_before = True
                placements.append(Placement(digest, runs))
        return placements

    def placed(self, digest: str, seconds: float) -> None:
        """The version can be used; copying it from the host took so many seconds."""
        self._placing.remove(digest)
        version = self._versions[digest]
        version.copy_seconds = seconds
        if self._one_memory:
            self._host.leave(digest)
        self._use(digest)
        if digest in self._retired:
            self._forget(digest)

    def fits(self, sizes: Sequence[int]) -> bool:
        """Whether a version of such pieces could ever be placed."""
        return sum(map(pages_for, sizes)) <= self._pages.num_pages

    def take_loads(self) -> list[AdapterRef]:
        """Versions to read now, each named once, and once more for each `read_elsewhere`.

        What is read ahead is bounded: nothing is read for a request while what those before it want fills the host's
        memory, waiting for room on the device; nor what its tenants' limits would keep from there.
        """
        return self._loading.take(
            self._ranks,
            lambda reading: last_within(self.host_budget_bytes, self._versions.values(), self._lacking(), reading),
            self._is_held_back,
        )

    def take_evictions(self) -> list[str]:
        """Versions whose device memory is to be freed, each named once. Always taken before what `place` gave."""
        evictions, self._to_evict = self._to_evict, []
        return evictions

    def take_drops(self) -> list[str]:
        """Versions whose image is to be freed, so that host memory keeps to its budget; they may still be resident."""
        self._trim_host()
        drops, self._to_drop = self._to_drop, []
        return drops

    # -- how things stand ----------------------------------------------------------------------------

    @property
    def budget_bytes(self) -> int:
        return self._pages.num_pages * PAGE_BYTES

    @property
    def resident_bytes(self) -> int:
        """Device memory taken, also by what is on its way there."""
        return (self._pages.num_pages - self._pages.num_free) * PAGE_BYTES

    @property
    def host_bytes(self) -> int:
        return self._host.nbytes

    @property
    def in_host(self) -> tuple[str, ...]:
        return tuple(self._host)

    @property
    def resident(self) -> tuple[str, ...]:
        return tuple(self._resident)

    @property
    def pinned(self) -> tuple[str, ...]:
        return tuple(self._pins)

    def check_invariants(self) -> None:
        """Bytes and pages add up, and whatever is pinned is resident."""
        on_device = {*self._resident, *self._placing}
        self._pages.check_invariants(run for digest in on_device for run in self._versions[digest].runs)
        assert set(self._versions) == on_device | set(self._host), "a version is known that is nowhere"
        assert all(bool(version.runs) == (d in on_device) for d, version in self._versions.items() if version.pages)
        assert set(self._pins) <= set(self._resident), "a pinned version is not resident"
        assert self._placing <= set(self._host), "what is being copied has no image"
        assert not self._placing & set(self._resident), "placed twice"
        assert not any(digest in self._loading for digest in self._versions), "loaded twice"
        self._loading.check_invariants()
        assert not (self._one_memory and set(self._host) & set(self._resident)), "counted twice"
        self._claims.check_invariants(on_device)
        assert self._host.nbytes == sum(self._versions[digest].nbytes for digest in self._host)

    # -- inside --------------------------------------------------------------------------------------

    def _rank(self, digest: str) -> int:
        return self._ranks.get(digest, NOT_WANTED)

    def _use(self, digest: str) -> None:
        version = self._versions[digest]
        back = version.copy_seconds if self._one_memory or digest in self._host else version.read_seconds
        self._resident.use(digest, version.nbytes, back)
        if digest in self._host:
            self._host.use(digest, version.nbytes, version.read_seconds)

    def _behind(self, digest: str, tenant: str) -> list[str]:
        """A tenant's resident versions that nobody waits for before this one, in the order in which they make room."""
        own, rank = (d for d in self._claims.versions_of(tenant) if d in self._resident), self._rank(digest)
        return self._in_order(self._resident, (d for d in own if self._rank(d) > rank))

    def _in_order(self, tier: GreedyDual, among: Iterable[str]) -> list[str]:
        """Versions in the order in which they make room."""
        only_for, above = self._claims.is_only_for, self._claims.above_share(self.budget_bytes)
        return sorted(among, key=lambda d: (-self._rank(d), d in self._kept, not only_for(d, above), tier.standing(d)))

    def _allocate(self, digest: str, asker: Asker, surplus: list[str]) -> tuple[Run, ...] | None:
        """Pages for a version, made free by evicting what its tenant gives up, and then others; none in vain."""
        version, rank, spared = self._versions[digest], self._rank(digest), frozenset(self._pins)
        if rank == NOT_WANTED and digest in self._kept:  # what is neither kept nor wanted goes for it
            rank, spared = LAST, spared | self._kept
        own = {asker.tenant}
        going = [other for other in surplus if other not in self._pins and self._claims.is_only_for(other, own)]
        if not self._fits_without(version, going):
            behind = [d for d in self._resident if self._rank(d) > rank and d not in spared and d not in going]
            if not self._fits_without(version, [*going, *behind]):
                return None
            going += self._in_order(self._resident, behind)
            del going[bisect_left(range(len(going)), True, key=lambda n: self._fits_without(version, going[:n])) :]
        for other in surplus:
            self._claims.give_up(other, asker.tenant)
        for other in going:
            self._evict(other)
        return self._pages.allocate(version.sizes)

    def _fits_without(self, version: Version, gone: Iterable[str]) -> bool:
        return version.would_fit(self._pages, [self._versions[other] for other in gone])

    def _evict(self, digest: str) -> None:
        self.evictions += 1
        self._resident.advance(digest)
        self._leave_device(digest)

    def _leave_device(self, digest: str) -> None:
        version = self._versions[digest]
        self._resident.leave(digest)
        self._pages.free(version.runs)
        self._claims.leave(digest)
        version.runs, version.on_device = (), False
        self._to_evict.append(digest)
        if self._one_memory:
            self._host.use(digest, version.nbytes, version.read_seconds)
        elif digest not in self._host:
            del self._versions[digest]

    def _forget(self, digest: str) -> None:
        """Free a version everywhere."""
        self._retired.discard(digest)
        self._arrived.pop(digest, None)
        if digest in self._resident:
            self._leave_device(digest)
        if digest in self._host:
            self._drop(digest)

    def _drop(self, digest: str) -> None:
        self._host.leave(digest)
        self._to_drop.append(digest)
        if digest not in self._resident:
            del self._versions[digest]

    def _trim_host(self) -> None:
        """Drop images until the rest is within the budget; what the first request waits for stays whatever it takes."""
        if self._host.nbytes <= self.host_budget_bytes:
            return
        first = min((rank for rank, _ in self._lacking()), default=LAST)
        spare = (d for d in self._host if d in self._resident or d in self.limited or self._rank(d) > min(first, LAST))
        droppable = self._in_order(self._host, (d for d in spare if d not in self._placing))
        for digest in sorted(droppable, key=self.limited.order):
            if self._host.nbytes <= self.host_budget_bytes:
                return
            self._arrived.pop(digest, None)
            self._host.advance(digest)
            self._drop(digest)

    def _lacking(self) -> Iterable[tuple[int, int]]:
        """Places in the queue and bytes of versions that wait for room on the device, which others can make."""
        lacking = (digest for digest in self._host if self.lacks_room(digest) and digest not in self.limited)
        return ((self._rank(digest), self._versions[digest].nbytes) for digest in lacking)

    def _is_held_back(self, digest: str) -> bool:
        """Whether limits would keep a version from the device, or it is behind one of which that is known."""
        if (behind := self.limited.is_behind_one(digest)) or digest not in self.limited:
            return behind
        askers = self._askers.get(digest, ())
        return self._claims.first_with_room(askers, self.nbytes(digest), partial(self._behind, digest)) is None
