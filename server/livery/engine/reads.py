"""Which versions are to be read from the store, and in what order: the loader's queue as residency keeps it.

What waiting requests want goes in the order of their queue; every other time the oldest goes, so that a proof of a new
adapter isn't held up by requests for ever. What nobody asks for any more is forgotten before it is read.

One version may be asked for at several places at once: a copy on its way in, which is gone as soon as whoever sends it
hangs up, beside the stored files. Each place is tried once before the version counts as one that can't be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from livery.engine.base import AdapterRef, Asker
from livery.engine.versions import Version

READ_AHEAD = 2  # versions handed to the loader at a time: one being read, one for when that is done
NOT_WANTED = 1 << 60  # the place in the queue of what no request waits for
LAST = NOT_WANTED - 1  # that of the last request


class ReadQueue:
    """The only writer of what is to be read and being read."""

    def __init__(self) -> None:
        self._refs: dict[str, list[AdapterRef]] = {}  # the oldest first, those being read included; each at its places
        self._tried: Counter[str] = Counter()  # how many of a version's places failed
        self._begun: set[str] = set()
        self._asked: dict[str, tuple[Asker, ...]] = {}  # to be read whether or not a request waits, and for whom
        self._oldest_next = False

    def __contains__(self, digest: object) -> bool:
        return digest in self._refs

    def add(self, adapter: AdapterRef, asker: Asker | None = None) -> None:
        """Have a version read, from here if it is on its way from elsewhere and can't be read there.

        With an asker whether or not a request waits for it: somebody wants to know if it can be.
        """
        places = self._refs.setdefault(adapter.digest, [])
        if adapter not in places:
            places.append(adapter)
        if asker is not None:
            before = self._asked.get(adapter.digest, ())
            self._asked[adapter.digest] = tuple(dict.fromkeys((*before, asker)))

    def begun(self, digest: str) -> bool:
        return digest in self._begun

    def elsewhere(self, digest: str, others: Iterable[AdapterRef]) -> bool:
        """The version can't be read where it was tried: read it at the next place, `others` included.

        False when there is none left.
        """
        for adapter in others:
            self.add(adapter)
        self._tried[digest] += 1
        if self._tried[digest] == len(self._refs[digest]):
            return False
        self._begun.discard(digest)
        return True

    def end(self, digest: str) -> tuple[Asker, ...]:
        """The version is read, can't be, or isn't wanted any more. Who asked for it apart from requests."""
        del self._refs[digest]
        del self._tried[digest]
        self._begun.discard(digest)
        return self._asked.pop(digest, ())

    def take(
        self, ranks: Mapping[str, int], last: Callable[[int], int], held: Callable[[str], bool]
    ) -> list[AdapterRef]:
        """Versions to begin with now; for requests, those with a place in the queue up to `last(being read)`, and none
        that is `held`.

        Each is given once, and once more after `elsewhere`.
        """
        taken: list[AdapterRef] = []
        while len(self._begun) < READ_AHEAD and len(self._refs) > len(self._begun):
            for digest in [digest for digest in self._refs if digest not in self._begun | self._asked.keys()]:
                if digest not in ranks:
                    self.end(digest)
            waiting = [digest for digest in self._refs if digest not in self._begun]
            most = last(len(self._begun))
            ready = [d for d in waiting if d in self._asked or (ranks.get(d, NOT_WANTED) <= most and not held(d))]
            if not ready:
                break
            self._oldest_next = not self._oldest_next
            digest = min(ready, key=lambda digest: ranks.get(digest, LAST)) if self._oldest_next else ready[0]
            self._begun.add(digest)
            taken.append(self._refs[digest][self._tried[digest]])
        return taken

    def check_invariants(self) -> None:
        assert self._begun | self._asked.keys() <= set(self._refs), "what is read isn't asked for"
        assert len(self._begun) <= READ_AHEAD
        assert all(self._tried[digest] < len(places) for digest, places in self._refs.items()), "no place is left"


def last_within(budget: int, known: Collection[Version], waiting: Iterable[tuple[int, int]], reading: int) -> int:
    """The last place in the queue for which the host has room, beside what waits for the device before it.

    `waiting` are places in the queue and bytes. How large the next one is shows when it is read, and so of the
    `reading`: each counts as the mean of those that are `known`.
    """
    mean = sum(version.nbytes for version in known) // max(1, len(known))
    room = budget - mean * (reading + 1)
    for rank, nbytes in sorted(waiting):
        room -= nbytes
        if room < 0:
            return rank
    return LAST
