"""What the engine was told of, and what requests and proofs under way use of it.

Every method is atomic on the event loop. As long as anybody uses a version, its files are held against garbage
collection, in this and every other process.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

from livery import descriptors
from livery.engine.base import AdapterRef
from livery.refusals import OutOfDescriptors
from livery_adapters.store import Hold


@dataclass(frozen=True, slots=True)
class Told:
    """A converted digest that the engine knows: the files it is made of; `composed`: no version's own digest."""

    digest: str
    weights: tuple[str, ...]
    composed: bool


class Holds:
    """Converted digests by use. `files` holds a blob's files, `idle` hears what is no longer used."""

    def __init__(self, files: Callable[[str], Hold], idle: Callable[[str], None]) -> None:
        self._files = files
        self._idle = idle
        self._uses: Counter[str] = Counter()
        self._told: dict[str, Told] = {}
        self._sums: OrderedDict[str, None] = OrderedDict()  # compositions that nobody uses, longest unused first
        self._held: dict[str, tuple[str, ...]] = {}  # by converted digest: the files that are held for it
        self._open: dict[str, Hold] = {}  # by files: one descriptor, however many converted digests they are part of
        self._holders: Counter[str] = Counter()

    def keep(self, ref: AdapterRef, *, composed: bool = False, stored: bool = True) -> None:
        """One more uses it; `stored` False: its files aren't blobs yet.

        Raises FileNotFoundError when its files are gone, OutOfDescriptors, OSError.
        """
        weights = tuple(dict.fromkeys(part.digest for part in ref.parts))
        if stored and ref.digest not in self._held:
            self._hold_files(weights)
            self._held[ref.digest] = weights
        self._told[ref.digest] = Told(ref.digest, weights, composed)
        self._sums.pop(ref.digest, None)
        self._uses[ref.digest] += 1

    def let_go(self, digest: str) -> None:
        """One less uses it."""
        self._uses[digest] -= 1
        if self._uses[digest]:
            return
        del self._uses[digest]
        for weights in self._held.pop(digest, ()):
            self._let_go_of_files(weights)
        if self._told[digest].composed:
            self._sums[digest] = None
        self._idle(digest)

    def in_use(self, digest: str) -> bool:
        return digest in self._uses

    def unused(self, among: Iterable[str] | None = None) -> list[Told]:
        """What the engine knows and nobody uses, of these digests or of all."""
        digests = self._told if among is None else among
        return [self._told[digest] for digest in digests if digest in self._told and digest not in self._uses]

    def surplus(self, kept: int) -> list[str]:
        """The compositions that nobody uses without the latest so many, longest unused first."""
        return list(islice(self._sums, max(0, len(self._sums) - kept)))

    def forget(self, digest: str) -> None:
        """The engine doesn't know it any more, unless somebody asked for it again meanwhile."""
        if digest not in self._uses:
            self._told.pop(digest, None)
            self._sums.pop(digest, None)

    def weights(self, digest: str) -> tuple[str, ...]:
        """The files a converted digest is made of; a digest that nobody spoke of is taken for that of files."""
        told = self._told.get(digest)
        return told.weights if told else (digest,)

    def files_of(self, digests: Iterable[str]) -> frozenset[str]:
        """The files that converted digests are made of."""
        return frozenset(weights for digest in digests for weights in self.weights(digest))

    def _hold_files(self, weights: tuple[str, ...]) -> None:
        """Hold all of them, or none."""
        with ExitStack() as undo:
            for one in weights:
                if one not in self._open:
                    self._open[one] = self._opened(one)
                self._holders[one] += 1
                undo.callback(self._let_go_of_files, one)
            undo.pop_all()

    def _opened(self, weights: str) -> Hold:
        try:
            return self._files(weights)
        except OSError as error:
            if descriptors.used_up(error):
                raise OutOfDescriptors from error
            raise

    def _let_go_of_files(self, weights: str) -> None:
        self._holders[weights] -= 1
        if not self._holders[weights]:
            del self._holders[weights]
            self._open.pop(weights).release()
