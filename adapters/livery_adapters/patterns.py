"""Module-name patterns of an adapter's configuration, matched in linear time.

PEFT reads the keys of `rank_pattern` and `alpha_pattern` as regular expressions, and a hostile one can run for
ever. So only a subset is accepted, in which a match is a walk along the name: literal names, `.`, `\\.`, `\\d`,
classes as `[0-9]`, one of `*`, `+`, `?` after any of them, `|` between alternatives, also within groups, `^` in front
and `$` at the end. A group is not repeated, so that it is written out: `1(0|1)` is `10|11`.

All patterns of a field walk along a name together, as bits of one number, so that a name costs its length whatever
the patterns are: the Shift-And algorithm (Baeza-Yates and Gonnet 1992; Navarro and Raffinot, Flexible Pattern
Matching in Strings, 2002), where every character has the set of places that accept it in a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Generic, TypeVar

from livery_adapters.refusal import AdapterRefused

MAX_LENGTH = 512
# Of one field. A name per module of the largest models fits, and repetitions are for the few that stand for many.
MAX_ALTERNATIVES = 1024
MAX_CHARACTERS = 64 << 10
MAX_DEPTH = 8  # groups within groups
MAX_REPEATING = 16  # alternatives with *, + or ?
MAX_REPEATING_CHARACTERS = 512  # of these alternatives together

_ATOM = re.compile(r"(\\\.|\\d|\[[A-Za-z0-9_.]+(?:-[A-Za-z0-9_.]+)*\]|[A-Za-z0-9_.-])([*+?]?)")
_OPEN = re.compile(r"\((\?:)?")
_DIGITS = "0123456789"
_ANY = ""  # as the characters of a token
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Branch:
    """One alternative as a chain of (characters, quantifier); `owner` numbers the pattern that it belongs to."""

    owner: int
    anchored: bool
    tokens: tuple[tuple[str, str], ...]

    @property
    def varies(self) -> bool:
        return any(mark for _, mark in self.tokens)


class _Fixed:
    """Alternatives without repetitions, compared with the end of a name from the last character to the first.

    Bit i of a mask stands for alternative i.
    """

    def __init__(self, branches: list[_Branch]) -> None:
        self.owners = [branch.owner for branch in branches]
        length = max((len(branch.tokens) for branch in branches), default=0)
        # By distance from the end: who accepts a character, who any other one, whose first character is there.
        self._accepting: list[dict[str, int]] = [{} for _ in range(length)]
        self._any = [0] * length
        self._beginning = [0] * length
        self._floating = sum(1 << bit for bit, branch in enumerate(branches) if not branch.anchored)
        self._everyone = (1 << len(branches)) - 1
        for bit, branch in enumerate(branches):
            self._beginning[len(branch.tokens) - 1] |= 1 << bit
            for place, (chars, _) in enumerate(reversed(branch.tokens)):
                if chars == _ANY:
                    self._any[place] |= 1 << bit
                _allow(self._accepting[place], chars, 1 << bit)
        for table, others in zip(self._accepting, self._any, strict=True):
            for char in table:
                table[char] |= others

    def matches(self, name: str) -> int:
        """The alternatives that are the whole name or its end after a dot."""
        state, found, start = self._everyone, 0, len(name)
        for table, others, beginning in zip(self._accepting, self._any, self._beginning, strict=True):
            if not state or not start:
                break
            start -= 1
            state &= table.get(name[start], others)
            if start == 0:
                found |= state & beginning
            elif name[start - 1] == ".":
                found |= state & beginning & self._floating
        return found


class _Varying:
    """Alternatives with repetitions: bit i of a mask stands for a token, or for the end of an alternative."""

    def __init__(self, branches: list[_Branch]) -> None:
        self.owners: dict[int, int] = {}  # by the bit of the alternative's end
        self._accepting: dict[str, int] = {}
        self._any = self._repeating = self._skippable = self._starts = self._restarts = self._ends = 0
        bit = 1
        for branch in branches:
            self._starts |= bit
            self._restarts |= 0 if branch.anchored else bit
            for chars, mark in branch.tokens:
                self._any |= bit if chars == _ANY else 0
                self._repeating |= bit if mark in ("*", "+") else 0
                self._skippable |= bit if mark in ("*", "?") else 0
                _allow(self._accepting, chars, bit)
                bit <<= 1
            self._ends |= bit
            self.owners[bit] = branch.owner
            bit <<= 1
        for char in self._accepting:
            self._accepting[char] |= self._any

    def matches(self, name: str) -> int:
        """The ends of the alternatives that are the whole name or its end after a dot."""
        # One step past what may be skipped is enough: no two such tokens are neighbours.
        state = self._starts | (self._starts & self._skippable) << 1
        for char in name:
            moved = state & self._accepting.get(char, self._any)
            state = moved << 1 | moved & self._repeating
            if char == ".":
                state |= self._restarts
            state |= (state & self._skippable) << 1
        return state & self._ends


class NamePatterns(Generic[_T]):
    """The patterns of one field with their values, in the file's order: the first that matches counts.

    A pattern matches a module's whole path or its end after a dot.
    """

    def __init__(self, field: str, values: Mapping[str, _T]) -> None:
        """Translate the patterns of a field. Raises AdapterRefused (unsafe_pattern): over a limit, or none of these."""
        self._texts = list(values)
        self._values = list(values.values())
        branches = _branches(field, self._texts)
        self._fixed = _Fixed([branch for branch in branches if not branch.varies])
        self._varying = _Varying([branch for branch in branches if branch.varies])
        self._known: dict[str, tuple[int, int]] = {}  # each module is asked for several times

    def __len__(self) -> int:
        return len(self._texts)

    def __eq__(self, other: object) -> bool:
        """The same patterns with the same values in the same order."""
        return isinstance(other, NamePatterns) and (self._texts, self._values) == (other._texts, other._values)

    def __hash__(self) -> int:
        return hash(tuple(self._texts))

    def first(self, name: str, default: _T) -> _T:
        """The value of the first pattern that matches, or the default."""
        return next((self._values[owner] for owner in self._matching(name)), default)

    def matching(self, name: str) -> Iterator[str]:
        """The patterns that match, in the file's order."""
        return (self._texts[owner] for owner in self._matching(name))

    def _matching(self, name: str) -> Iterator[int]:
        if not self._texts:
            return
        if name not in self._known:
            self._known[name] = self._fixed.matches(name), self._varying.matches(name)
        fixed, varying = self._known[name]
        last = -1
        while fixed or varying:
            lowest, lowest_end = fixed & -fixed, varying & -varying
            one = self._fixed.owners[lowest.bit_length() - 1] if fixed else len(self._texts)
            other = self._varying.owners[lowest_end] if varying else len(self._texts)
            if one <= other:
                fixed ^= lowest
            else:
                varying ^= lowest_end
            if min(one, other) != last:
                last = min(one, other)
                yield last


def _branches(field: str, texts: list[str]) -> list[_Branch]:
    """All alternatives of all patterns. Raises AdapterRefused (unsafe_pattern)."""
    found: list[_Branch] = []
    characters = sum(map(len, texts))
    if characters > MAX_CHARACTERS or sum(text.count("|") + 1 for text in texts) > MAX_ALTERNATIVES:
        raise _too_many(field)
    for owner, text in enumerate(texts):
        if not text or len(text) > MAX_LENGTH:
            raise _unsafe(text)
        for anchored, tokens in _Reader(text, MAX_ALTERNATIVES - len(found)).alternatives():
            found.append(_Branch(owner, anchored, tokens))
            characters += len(tokens) if "(" in text else 0
        if len(found) > MAX_ALTERNATIVES or characters > MAX_CHARACTERS:
            raise _too_many(field)
    varying = [len(branch.tokens) for branch in found if branch.varies]
    if len(varying) > MAX_REPEATING or sum(varying) > MAX_REPEATING_CHARACTERS:
        raise AdapterRefused(
            "unsafe_pattern",
            f"{field} has {len(varying)} patterns or alternatives with repetitions, of {sum(varying)} characters in "
            f"all; {MAX_REPEATING} of {MAX_REPEATING_CHARACTERS} are accepted: write module names instead",
        )
    return found


_Tokens = tuple[tuple[str, str], ...]


class _Reader:
    """Reads one pattern, groups written out; no more than `most` + 1 alternatives. Raises AdapterRefused."""

    def __init__(self, text: str, most: int) -> None:
        self._text = text
        self._most = most
        self._at = 0
        self._depth = 0

    def alternatives(self) -> list[tuple[bool, _Tokens]]:
        """Whether each is anchored, and its tokens."""
        found: list[tuple[bool, _Tokens]] = []
        while True:
            anchored = self._take("^")
            sequences = self._sequence()
            self._take("$")
            for tokens in sequences:
                skippable = [mark in ("*", "?") for _, mark in tokens]
                if not tokens or any(one and other for one, other in pairwise(skippable)):
                    raise _unsafe(self._text)
                found.append((anchored, tokens))
            if self._at == len(self._text) or len(found) > self._most:
                return found
            if not self._take("|"):
                raise _unsafe(self._text)

    def _sequence(self) -> list[_Tokens]:
        """Up to a `|`, `)`, `$` or the end: every way to write it."""
        ways: list[list[tuple[str, str]]] = [[]]
        while self._at < len(self._text) and self._text[self._at] not in "|)$":
            if opened := _OPEN.match(self._text, self._at):
                self._at = opened.end()
                parts = self._group()
                written = ([*way, *part] for way in ways for part in parts)
                ways = list(islice(written, self._most + 1))
                continue
            found = _ATOM.match(self._text, self._at)
            if found is None:
                raise _unsafe(self._text)
            token = (self._characters(found[1]), found[2])
            for way in ways:
                way.append(token)
            self._at = found.end()
        return [tuple(way) for way in ways]

    def _group(self) -> list[_Tokens]:
        """Its alternatives, behind the bracket that closes it."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _unsafe(self._text)
        found = self._sequence()
        while self._take("|"):
            found += self._sequence()
        self._depth -= 1
        if not self._take(")") or self._text[self._at : self._at + 1] in tuple("*+?{"):
            raise _unsafe(self._text)
        return found[: self._most + 1]

    def _take(self, char: str) -> bool:
        taken = self._text.startswith(char, self._at)
        self._at += taken
        return taken

    def _characters(self, atom: str) -> str:
        """That it accepts; _ANY for all."""
        if atom == "\\d":
            return _DIGITS
        if len(atom) == 1:
            return _ANY if atom == "." else atom
        if atom[0] == "\\":
            return atom[1]
        pieces = re.findall(r"([A-Za-z0-9_.])-([A-Za-z0-9_.])|([A-Za-z0-9_.])", atom[1:-1])
        if len("".join(f"{low}-{high}" if low else one for low, high, one in pieces)) != len(atom) - 2:
            raise _unsafe(self._text)  # a `-` that is part of no range
        if any(low > high for low, high, _ in pieces if low):
            raise _unsafe(self._text)
        ranges = (range(ord(low or one), ord(high or one) + 1) for low, high, one in pieces)
        return "".join(sorted({chr(code) for codes in ranges for code in codes}))


def _allow(table: dict[str, int], chars: str, bit: int) -> None:
    """Enter who accepts each of these characters; whoever accepts any is entered by who has the table."""
    for char in chars:
        table[char] = table.get(char, 0) | bit


def _too_many(field: str) -> AdapterRefused:
    return AdapterRefused(
        "unsafe_pattern",
        f"{field} has over {MAX_ALTERNATIVES} alternatives or over {MAX_CHARACTERS} characters; write '.*' or "
        "'\\d+' where names vary",
    )


def _unsafe(text: str) -> AdapterRefused:
    return AdapterRefused(
        "unsafe_pattern",
        f"the pattern {text[:120]!r} can't be matched in bounded time; write module names, with '.*' or '\\d+' where "
        "they vary",
    )
