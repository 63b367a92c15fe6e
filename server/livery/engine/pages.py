"""A memory budget cut into pages: who holds which, and nothing about what is in them.

    page   0    1    2    3    4    5    6 …
         [ piece a     ][ b ][ free    ][ piece c

An adapter is a list of pieces, each of which wants neighbouring pages. All of them in one run is tried first, as one
adapter's pages come free together; else each piece goes into the smallest run that holds it (best fit), the largest
piece first. Freed runs grow together with their free neighbours.

Where the device computes on images as they lie in the host's memory, pages only measure it: none has a place, so that
free ones always do (PageCount).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

PAGE_BYTES = 1024  # half a page is lost per piece, and pieces of real adapters have tens of kilobytes and more


class Run(NamedTuple):
    """Pages [first, first + pages)."""

    first: int
    pages: int


def pages_for(nbytes: int) -> int:
    """How many pages hold so many bytes."""
    return -(-nbytes // PAGE_BYTES)


class PageCount:
    """Pages without a place: only how many are taken counts."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_free = num_pages

    def allocate(self, sizes: Sequence[int]) -> tuple[Run, ...] | None:
        """A run for each piece of so many bytes, in order; or None, and nothing is taken, when they don't all fit."""
        if not self.would_fit(sizes):
            return None
        counts = [pages_for(size) for size in sizes]
        self.num_free -= sum(counts)
        return tuple(_cut(0, counts))

    def would_fit(self, sizes: Sequence[int], freed: Iterable[Run] = ()) -> bool:
        """Whether `allocate` would find room for these pieces if those runs were given back; changes nothing."""
        return sum(map(pages_for, sizes)) <= self.num_free + sum(run.pages for run in freed)

    def free(self, runs: Iterable[Run]) -> None:
        """Give runs back. Freeing what isn't held is a bug in the caller."""
        self.num_free += sum(run.pages for run in runs)
        assert self.num_free <= self.num_pages, "a page is freed twice"

    def check_invariants(self, held: Iterable[Run] = ()) -> None:
        """Every page is either free or in one of the `held` runs."""
        assert self.num_free + sum(run.pages for run in held) == self.num_pages, "pages are counted wrongly"


class PageAllocator(PageCount):
    """Hands out runs of pages. The only writer of which page is free."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages)
        self._counts: dict[int, int] = {}  # free runs: first page -> count
        self._firsts: dict[int, int] = {}  # the same runs: page after the last -> first
        self._by_count: list[tuple[int, int]] = []  # the same runs: (count, first), ascending
        if num_pages:
            self._add(0, num_pages)

    def allocate(self, sizes: Sequence[int]) -> tuple[Run, ...] | None:
        counts = [pages_for(size) for size in sizes]
        if sum(counts) > self.num_free:
            return None
        whole = self._take(sum(counts))
        if whole is not None:
            return tuple(_cut(whole, counts))
        runs: dict[int, Run] = {}
        for index in sorted(range(len(counts)), key=counts.__getitem__, reverse=True):
            first = self._take(counts[index])
            if first is None:
                self.free(runs.values())
                return None
            runs[index] = Run(first, counts[index])
        return tuple(runs[index] for index in range(len(counts)))

    def would_fit(self, sizes: Sequence[int], freed: Iterable[Run] = ()) -> bool:
        counts = sorted(map(pages_for, sizes), reverse=True)
        joined = _joined(sorted([*self._counts.items(), *(run for run in freed if run.pages)]))
        free = sorted(count for _, count in joined)
        if sum(counts) <= max(free, default=0):
            return True
        for count in counts:  # of equally long runs `allocate` may take any: what is left is as long
            place = bisect_left(free, count)
            if place == len(free):
                return count == 0
            insort(free, free.pop(place) - count)
        return True

    def free(self, runs: Iterable[Run]) -> None:
        for first, count in _joined(sorted(run for run in runs if run.pages)):
            self.num_free += count
            end = first + count
            assert first not in self._counts and end not in self._firsts, "a page is freed twice"
            if (before := self._firsts.get(first)) is not None:
                count += self._remove(before)
                first = before
            if end in self._counts:
                count += self._remove(end)
            self._add(first, count)

    def check_invariants(self, held: Iterable[Run] = ()) -> None:
        """Every page is either free or in exactly one of the `held` runs, and no two free runs touch."""
        free = sorted(self._counts.items())
        assert all(a + n < b for (a, n), (b, _) in pairwise(free)), "free runs touch or overlap"
        assert self._by_count == sorted((count, first) for first, count in free), "free runs are indexed wrongly"
        assert self._firsts == {first + count: first for first, count in free}, "free runs are indexed wrongly"
        assert self.num_free == sum(count for _, count in free), "free pages are counted wrongly"
        taken = sorted([*free, *((run.first, run.pages) for run in held if run.pages)])
        ends = [0, *(first + count for first, count in taken)]
        assert [first for first, _ in taken] == ends[:-1], "a page is held twice or lost"
        assert ends[-1] == self.num_pages, "pages at the end are lost"

    def _take(self, count: int) -> int | None:
        """Take `count` neighbouring pages out of the smallest free run that has them; the first one's number."""
        if count == 0:
            return 0
        place = bisect_left(self._by_count, (count, 0))
        if place == len(self._by_count):
            return None
        found, first = self._by_count[place]
        self._remove(first)
        if found > count:
            self._add(first + count, found - count)
        self.num_free -= count
        return first

    def _add(self, first: int, count: int) -> None:
        self._counts[first] = count
        self._firsts[first + count] = first
        insort(self._by_count, (count, first))

    def _remove(self, first: int) -> int:
        count = self._counts.pop(first)
        del self._firsts[first + count]
        del self._by_count[bisect_left(self._by_count, (count, first))]
        return count


def _cut(first: int, counts: Iterable[int]) -> Iterable[Run]:
    for count in counts:
        yield Run(first, count)
        first += count


def spans(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The same pages in as few runs as can be, in ascending order."""
    return tuple(Run(first, pages) for first, pages in _joined(sorted(run for run in runs if run.pages)))


def _joined(runs: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Neighbouring runs as one, for runs in ascending order."""
    start, end = -1, -1
    for first, pages in runs:
        assert first >= end, "a page is freed twice"
        if first != end:
            if end > start:
                yield start, end - start
            start = first
        end = first + pages
    if end > start:
        yield start, end - start
