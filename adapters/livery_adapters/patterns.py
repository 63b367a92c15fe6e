"""Module-name patterns of an adapter's configuration, matched in linear time.

PEFT reads the keys of `rank_pattern` and `alpha_pattern` as regular expressions, and a hostile one can run for
ever. So only a subset is accepted, in which a match is a walk along the name: literal names, `.`, `\\.`, `\\d`,
`[0-9]`, one of `*`, `+`, `?` after any of them, `|` between whole alternatives, `^` in front and `$` at the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from livery_adapters.refusal import AdapterRefused

MAX_LENGTH = 512
MAX_REPEATING = 16  # patterns with a repetition in one configuration

_DIGIT = ("\\d", "[0-9]")
_ATOM = re.compile(r"(\\\.|\\d|\[0-9\]|[A-Za-z0-9_.-])([*+?]?)")


@dataclass(frozen=True, slots=True)
class _Branch:
    """One alternative as a chain of tokens; bit i of a mask stands for token i."""

    anchored: bool
    tokens: tuple[tuple[str, str], ...]  # (atom, quantifier)
    skippable: int
    repeating: int
    literals: tuple[tuple[int, str], ...]  # runs of plain characters by their first token
    digits: tuple[int, ...]  # tokens that accept a digit

    def matches(self, name: str) -> bool:
        if not self.repeating and not self.skippable:
            return self._matches_fixed(name)
        state, started = 0, True
        for char in name:
            state = self._closure(state | started)
            moved = state & self._accepting(char)
            state = (moved << 1) | (moved & self.repeating)
            started = not self.anchored and char == "."
        state = self._closure(state | started)
        return bool(state >> len(self.tokens) & 1)

    def _closure(self, state: int) -> int:
        return state | (state & self.skippable) << 1  # one step: no two skippable tokens are neighbours

    def _accepting(self, char: str) -> int:
        mask = 0
        for index, (atom, _) in enumerate(self.tokens):
            if _accepts(atom, char):
                mask |= 1 << index
        return mask

    def _matches_fixed(self, name: str) -> bool:
        start = len(name) - len(self.tokens)
        if start < 0 or (start > 0 and (self.anchored or name[start - 1] != ".")):
            return False
        # Run by run instead of token by token: thousands of patterns may meet thousands of modules.
        for offset, text in self.literals:
            if not name.startswith(text, start + offset):
                return False
        return all("0" <= name[start + offset] <= "9" for offset in self.digits)


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A key of `rank_pattern` or `alpha_pattern`: matches a module's whole path or its end after a dot."""

    text: str
    branches: tuple[_Branch, ...]

    @property
    def repeats(self) -> bool:
        return any(branch.repeating or branch.skippable for branch in self.branches)

    def matches(self, name: str) -> bool:
        for branch in self.branches:  # noqa: SIM110 - a generator costs more than the match
            if branch.matches(name):
                return True
        return False


def parse_pattern(text: str) -> NamePattern:
    """Translate a pattern. Raises AdapterRefused (unsafe_pattern) for what the subset doesn't have."""
    if not text or len(text) > MAX_LENGTH:
        raise _unsafe(text)
    return NamePattern(text, tuple(_parse_branch(part, text) for part in text.split("|")))


def _parse_branch(part: str, text: str) -> _Branch:
    body = part.removeprefix("^").removesuffix("$")
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(body):
        found = _ATOM.match(body, position)
        if found is None:
            raise _unsafe(text)
        tokens.append((found[1], found[2]))
        position = found.end()
    skippable = sum(1 << index for index, (_, mark) in enumerate(tokens) if mark in ("*", "?"))
    repeating = sum(1 << index for index, (_, mark) in enumerate(tokens) if mark in ("*", "+"))
    if not tokens or skippable & skippable << 1:
        raise _unsafe(text)
    atoms = [atom for atom, _ in tokens]
    digits = tuple(index for index, atom in enumerate(atoms) if atom in _DIGIT)
    return _Branch(part.startswith("^"), tuple(tokens), skippable, repeating, _literals(atoms), digits)


def _literals(atoms: list[str]) -> tuple[tuple[int, str], ...]:
    runs: list[tuple[int, str]] = []
    for index, atom in enumerate(atoms):
        if atom == "." or atom in _DIGIT:
            continue
        if runs and runs[-1][0] + len(runs[-1][1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + atom[-1])
        else:
            runs.append((index, atom[-1]))
    return tuple(runs)


def _accepts(atom: str, char: str) -> bool:
    if atom == ".":
        return True
    if atom in _DIGIT:
        return "0" <= char <= "9"
    return atom[-1] == char


def _unsafe(text: str) -> AdapterRefused:
    return AdapterRefused(
        "unsafe_pattern",
        f"the pattern {text[:120]!r} can't be matched in bounded time; write module names, with '.*' or '\\d+' where "
        "they vary",
    )
