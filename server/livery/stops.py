"""Stop strings: found in text as it comes, wherever it is cut. Knows no tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopSearch:
    """All stop strings of a request as one automaton, which reads each character once however many there are.

    Aho and Corasick, "Efficient string matching", 1975. States are beginnings of stop strings, the empty one first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Time and memory are the summed length of `stops`, none of which is empty."""
        self.lengths = [0]  # of the beginning that a state is
        self.ending = [0]  # length of the longest stop string that ends at a state
        self._next: list[dict[str, int]] = [{}]
        for stop in stops:
            state = 0
            for character in stop:
                state = self._next[state].setdefault(character, len(self._next))
                if state == len(self._next):
                    self._next.append({})
                    self.lengths.append(0)
                    self.ending.append(0)
            self.ending[state] = len(stop)
        self._first = frozenset(self._next[0])
        self._shorter = [0] * len(self._next)  # the longest proper end of a state that is a state too
        self._settle()

    def step(self, state: int, character: str) -> int:
        """The longest beginning of a stop string that what was read ends with."""
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def unfinished(self, state: int) -> int:
        """The longest beginning of a stop string, and not all of it, that what was read ends with."""
        while state and not self._next[state]:
            state = self._shorter[state]
        return state

    def may_begin_in(self, piece: str) -> bool:
        return not self._first.isdisjoint(piece)

    def _settle(self) -> None:
        waiting = deque([0])
        while waiting:
            state = waiting.popleft()
            for character, following in self._next[state].items():
                self.lengths[following] = self.lengths[state] + 1
                if state:
                    self._shorter[following] = self.step(self._shorter[state], character)
                self.ending[following] = self.ending[following] or self.ending[self._shorter[following]]
                waiting.append(following)


class StopBuffer:
    """Finds stop strings in a stream of text pieces and holds back what may become one.

    The first one to end counts; of several that end there, the longest.
    """

    def __init__(self, stops: Sequence[str] | StopSearch, *, keep: bool = False) -> None:
        """`keep`: a stop string that is met is text as well."""
        self._keep = keep
        self._search = stops if isinstance(stops, StopSearch) else StopSearch(stops)
        self._state = 0
        self._held = ""
        self.met: str | None = None  # the stop string that ended the text

    def push(self, piece: str) -> tuple[str, bool]:
        """Text safe to send, and whether a stop string was met, which is dropped unless it is to be kept."""
        search, state = self._search, self._state
        if not state and not search.may_begin_in(piece):
            return piece, False
        text = self._held + piece
        for at, character in enumerate(piece, len(self._held) + 1):
            state = search.step(state, character)
            if search.ending[state]:
                self._state, self._held = 0, ""
                self.met = text[at - search.ending[state] : at]
                return text[: at if self._keep else at - search.ending[state]], True
        self._state = state
        sent = len(text) - search.lengths[state]
        self._held = text[sent:]
        return text[:sent], False

    def pass_by(self, piece: str) -> str:
        """Text safe to send, as of `push`, where no stop string may end yet: one that begins in it may end later."""
        search, state = self._search, self._state
        for character in piece:
            state = search.step(state, character)
        text, self._state = self._held + piece, search.unfinished(state)
        sent = len(text) - search.lengths[self._state]
        self._held = text[sent:]
        return text[:sent]

    def flush(self) -> str:
        """What was held back when the sequence ended otherwise."""
        held, self._state, self._held = self._held, 0, ""
        return held
