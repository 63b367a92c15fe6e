"""Counts by name with a bounded number of names: the busiest show, the others add up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from heapq import nsmallest
from typing import Generic, Protocol, Self, TypeVar

from livery.activity import Work

OTHER = "_other"


class Counts(Protocol):
    """Running totals of one name, or of all that have no label."""

    @property
    def work(self) -> int:
        """What names are ranked by, in tokens."""
        ...

    def add(self, other: Self) -> None: ...

    def ended(self, work: Work) -> None:
        """One more request is over."""
        ...


C = TypeVar("C", bound=Counts)


class Top(Generic[C]):
    """Counts by name with at most `limit` names shown, the rest under `_other`.

    Every series grows by new work and by nothing else, so that its rate is true: a name that loses its label takes its
    past with it and adds to `_other` from then on; one that gains a label starts there from zero. Of equal work, who
    has a label keeps it.
    """

    def __init__(self, limit: int, new: Callable[[], C]) -> None:
        self._limit = limit
        self._new = new
        self._work: dict[str, int] = {}  # tokens ever
        self._shown: dict[str, C] = {}
        self._other: C | None = None
        self._lock = threading.Lock()

    def record(self, name: str | None, counts: C) -> None:
        """Add to a name's counts, or to no name's. Names come from what is registered, never as a client sent them."""
        with self._lock:
            self._of(name, counts.work).add(counts)

    def ended(self, name: str | None, work: Work) -> None:
        """A request of a name, or of none, is over."""
        with self._lock:
            self._of(name, work.prompt_tokens + work.generated).ended(work)

    def _of(self, name: str | None, tokens: int) -> C:
        """What counts for a name that did so much work, its own or those of all without a label."""
        shown = None
        if name is not None and name != OTHER:
            self._work[name] = self._work.get(name, 0) + tokens
            shown = self._shown.get(name)
            if shown is None and len(self._shown) < self._limit:
                shown = self._shown[name] = self._new()
        if shown is None:
            shown = self._other = self._other or self._new()
        return shown

    def take(self) -> list[tuple[str, C]]:
        """All counts, those of no name under `_other`; from now on there are none."""
        with self._lock:
            rows = [*self._shown.items(), *([] if self._other is None else [(OTHER, self._other)])]
            self._shown, self._other, self._work = {}, None, {}
            return rows

    def know(self, names: Collection[str]) -> None:
        """These have counts, which nothing more is known of."""
        with self._lock:
            for name in names:
                self._work.setdefault(name, 0)

    def names(self) -> list[str]:
        """Every name with counts."""
        with self._lock:
            return list(self._work)

    def drop(self, names: Collection[str]) -> None:
        """These are no longer served: their series end."""
        with self._lock:
            for name in names:
                self._work.pop(name, None)
                self._shown.pop(name, None)

    def snapshot(self) -> list[tuple[str, C]]:
        """Copies of what is shown now, by name, `_other` last where it has counts."""
        with self._lock:
            busiest = nsmallest(self._limit, self._work, key=self._rank)
            for name in self._shown.keys() - busiest:
                del self._shown[name]
            for name in busiest:
                if name not in self._shown:
                    self._shown[name] = self._new()
            rows = [(name, self._copy(counts)) for name, counts in sorted(self._shown.items())]
            return rows if self._other is None else [*rows, (OTHER, self._copy(self._other))]

    def _rank(self, name: str) -> tuple[int, bool, str]:
        return -self._work[name], name not in self._shown, name

    def _copy(self, counts: C) -> C:
        fresh = self._new()
        fresh.add(counts)
        return fresh
