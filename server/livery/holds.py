"""What the engine was told of, and what requests and proofs under way use of it.

Every method is atomic on the event loop. As long as anybody uses a version, its files are held against garbage
collection, in this and every other process.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from livery.engine.base import AdapterRef
from livery_adapters.store import Hold


@dataclass(frozen=True, slots=True)
class Told:
    """A converted digest that the engine knows: the files it is made of; `composed`: no version's own digest."""

    digest: str
    weights: tuple[str, ...]
    composed: bool


class Holds:
    """Converted digests by use. `files` holds a blob's files, `idle` hears when something is no longer used."""

    def __init__(self, files: Callable[[str], Hold], idle: Callable[[], None]) -> None:
        self._files = files
        self._idle = idle
        self._uses: Counter[str] = Counter()
        self._told: OrderedDict[str, Told] = OrderedDict()  # longest unused first
        self._held: dict[str, list[Hold]] = {}

    def keep(self, ref: AdapterRef, *, composed: bool = False, stored: bool = True) -> None:
        """One more uses it. Raises FileNotFoundError when its files are gone; `stored` False: they aren't blobs yet."""
        weights = tuple(dict.fromkeys(part.digest for part in ref.parts))
        if stored and ref.digest not in self._held:
            self._held[ref.digest] = self._hold_files(weights)
        self._told[ref.digest] = Told(ref.digest, weights, composed)
        self._told.move_to_end(ref.digest)
        self._uses[ref.digest] += 1

    def let_go(self, digest: str) -> None:
        """One less uses it."""
        self._uses[digest] -= 1
        if self._uses[digest]:
            return
        del self._uses[digest]
        for hold in self._held.pop(digest, ()):
            hold.release()
        self._idle()

    def in_use(self, digest: str) -> bool:
        return digest in self._uses

    def unused(self) -> list[Told]:
        """What the engine knows and nobody uses, longest unused first."""
        return [told for digest, told in self._told.items() if digest not in self._uses]

    def forget(self, digest: str) -> None:
        """The engine doesn't know it any more, unless somebody asked for it again meanwhile."""
        if digest not in self._uses:
            self._told.pop(digest, None)

    def weights(self, digest: str) -> tuple[str, ...]:
        """The files a converted digest is made of; a digest that nobody spoke of is taken for that of files."""
        told = self._told.get(digest)
        return told.weights if told else (digest,)

    def files_of(self, digests: Iterable[str]) -> frozenset[str]:
        """The files that converted digests are made of."""
        return frozenset(weights for digest in digests for weights in self.weights(digest))

    def _hold_files(self, weights: tuple[str, ...]) -> list[Hold]:
        held: list[Hold] = []
        try:
            for one in weights:
                held.append(self._files(one))
        except FileNotFoundError:
            for hold in held:
                hold.release()
            raise
        return held
