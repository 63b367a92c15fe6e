"""Versions that only their tenants' own limits keep from the device: what they may take of what others wait for.

Nobody else can make room for such a version, so nobody else waits for it. Behind the first one of a tenant none of the
tenant's is read, and its image leaves host memory before any that a request waits for which could be placed. Who asked
for one that is gone waits on as before, and it isn't read again before it may be placed: its size is remembered.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from livery.engine.base import Asker
from livery.engine.reads import NOT_WANTED


class HeldBack:
    """The only writer of which versions these are: in host memory, or dropped from it while requests wait for them."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}  # bytes
        self._ranks: Mapping[str, int] = {}
        self._askers: Mapping[str, Sequence[Asker]] = {}
        self._firsts: dict[str, int] = {}  # tenant -> place in the queue of its first version that is held back

    def __contains__(self, digest: object) -> bool:
        return digest in self._sizes

    def begin(self, ranks: Mapping[str, int], askers: Mapping[str, Sequence[Asker]], in_memory: Container[str]) -> None:
        """What is in memory is found out anew; of what was dropped that is left which requests still wait for.

        `ranks` are the versions' places in the queue, `askers` the tenants whose requests wait for each.
        """
        self._sizes = {d: nbytes for d, nbytes in self._sizes.items() if d in ranks and d not in in_memory}
        self._ranks, self._askers, self._firsts = ranks, askers, {}
        for digest in self._sizes:
            self._count(digest)

    def add(self, digest: str, nbytes: int) -> None:
        """All tenants that ask for a version of so many bytes are at their limits."""
        self._sizes[digest] = nbytes
        self._count(digest)

    def nbytes(self, digest: str) -> int:
        return self._sizes[digest]

    def is_behind_one(self, digest: str) -> bool:
        """Whether every tenant that waits for a version has one held back before it."""
        rank, askers = self._ranks.get(digest, NOT_WANTED), self._askers.get(digest, ())
        return bool(askers) and all(self._firsts.get(asker.tenant, rank) < rank for asker in askers)

    def order(self, digest: str) -> tuple[bool, bool, bool]:
        """In what order images leave host memory, the lowest first.

        Before all what is behind one of its tenants' that is held back, then what no request waits for, the held back.
        """
        held = digest in self
        return not (held and self.is_behind_one(digest)), digest in self._ranks, not held

    def _count(self, digest: str) -> None:
        rank = self._ranks.get(digest, NOT_WANTED)
        for asker in self._askers.get(digest, ()):
            self._firsts[asker.tenant] = min(rank, self._firsts.get(asker.tenant, rank))
