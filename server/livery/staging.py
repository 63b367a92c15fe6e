"""Names whose first version is on its way in: into this process, or into another one of the same server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

Staged = tuple[str, str]  # a name in full and its owner


class Staging:
    """Use from one event loop. `tell` is called with all that is on its way in here, whenever that changes."""

    def __init__(self, settled: Callable[[Iterable[str]], None]) -> None:
        """`settled` hears of names that another process is done with: they are there, or came to nothing."""
        self._settled = settled
        self._here: Counter[Staged] = Counter()
        self._elsewhere: frozenset[Staged] = frozenset()
        self.tell: Callable[[list[Staged]], None] = lambda _: None

    def __contains__(self, one: Staged) -> bool:
        return one in self._here or one in self._elsewhere

    def __iter__(self) -> Iterator[Staged]:
        return iter({*self._here, *self._elsewhere})

    @contextmanager
    def begin(self, name: str, owner: str) -> Iterator[None]:
        """Around a change of a name: if it has no version yet, its first one is on its way in."""
        self._here[name, owner] += 1
        try:
            if self._here[name, owner] == 1:
                self.tell(list(self._here))
            yield
        finally:
            self._here[name, owner] -= 1
            if not self._here[name, owner]:
                del self._here[name, owner]
                self.tell(list(self._here))

    def hear(self, elsewhere: Iterable[Staged]) -> None:
        """All that is on its way into the server's other processes now."""
        before, self._elsewhere = self._elsewhere, frozenset(elsewhere)
        self._settled({name for name, _ in before - self._elsewhere})
