"""How many requests there are under way on each adapter, of all tenants and of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Self, TypeVar

K = TypeVar("K")
Row = tuple[str, str, int]  # account, adapter, requests
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class UnderWay:
    """Requests by the full names of adapters and by account (Principal). Use from one event loop."""

    def __init__(self) -> None:
        self._all: Counter[str] = Counter()
        self._own: Counter[tuple[str, str]] = Counter()

    @classmethod
    def told(cls, rows: Iterable[Row]) -> Self:
        """What `each` told, of one process or of several."""
        made = cls()
        for account, name, count in rows:
            made._all[name] += count
            made._own[account, name] += count
        return made

    def of(self, name: str, account: str | None = None) -> int:
        """On an adapter, whichever of its versions; with an account that tenant's alone."""
        return self._all[name] if account is None else self._own[account, name]

    def by_name(self, account: str | None) -> dict[str, int]:
        """By adapter, of all tenants or (an account) of one."""
        if account is None:
            return dict(self._all)
        return {name: count for (whose, name), count in self._own.items() if whose == account}

    def each(self) -> list[Row]:
        """Of every tenant."""
        return [(account, name, count) for (account, name), count in self._own.items()]

    def begin(self, account: str, names: Collection[str]) -> None:
        """A tenant's request runs on these, by their names in full."""
        self._all.update(names)
        self._own.update((account, name) for name in names)

    def end(self, account: str, names: Collection[str]) -> None:
        """One that began is over."""
        for name in names:
            _one_less(self._all, name)
            _one_less(self._own, (account, name))


def pauses(total_s: float) -> Iterator[float]:
    """Seconds to wait before each look at what is under way still, together so many.

    They grow: where a server is several processes, each look asks all of them.
    """
    pause = SHORTEST_PAUSE_S
    while total_s > 0:
        yield min(pause, total_s)
        total_s -= pause
        pause = min(1.5 * pause, LONGEST_PAUSE_S)


def _one_less(counts: Counter[K], key: K) -> None:
    """And forget who has none."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
