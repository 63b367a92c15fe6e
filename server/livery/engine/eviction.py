"""In what order the versions of one tier go when room is needed: GreedyDual-Size (Cao and Irani, 1997).

Each version's standing is the tier's clock at its last use plus what bringing it back costs per byte of room it takes.
The lowest standing goes first and moves the clock on to itself, so that what isn't used grows old however much it
cost. Of equal standing (nothing costs anything) the least recently used goes first.
"""

from __future__ import annotations

from collections.abc import Iterator


class GreedyDual:
    """The versions of one tier. Costs are seconds, sizes bytes."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._clock = 0.0
        self._sizes: dict[str, int] = {}  # the least recently used first
        self._standing: dict[str, float] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[str]:
        """The least recently used first."""
        return iter(self._sizes)

    def use(self, digest: str, nbytes: int, seconds: float) -> None:
        """The version is there, of so many bytes, and was used; bringing it back would take so many seconds."""
        self.nbytes += nbytes - self._sizes.pop(digest, 0)
        self._sizes[digest] = nbytes
        self._standing[digest] = self._clock + seconds / max(1, nbytes)

    def leave(self, digest: str) -> None:
        """The version is gone."""
        self.nbytes -= self._sizes.pop(digest)
        del self._standing[digest]

    def advance(self, digest: str) -> None:
        """The version is about to make room: the clock moves on to its standing."""
        self._clock = max(self._clock, self._standing[digest])

    def standing(self, digest: str) -> float:
        return self._standing[digest]
