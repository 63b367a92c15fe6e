"""Finds calls in text by the marks that formats put around them: one reader for all of them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

from livery.tools.call_reader import CallReader
from livery.tools.events import Functions, Part, TextParser
from livery.tools.json_reader import WHITESPACE, NotJson
from livery.tools.prose import Prose, overlap

_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
MAX_HEAD = 256  # characters between a start and the arguments that a name stands before

State = Literal["text", "open", "name", "call", "between", "closing"]


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands around calls. A start is followed by one call or a list of them, then by `end` where there is one.

    `bare`: an answer may begin with a call without a start, of a function that there is. `separator` may stand between
    calls that are no list. `named`: a start may be followed by a name, `argument_mark` and the arguments alone.
    """

    starts: tuple[str, ...]
    end: str = ""
    bare: bool = False
    separator: str = ""
    named: bool = False
    argument_mark: str = ""


class MarkedCalls(Prose):
    """The text parser for a format of such marks; see `events.TextParser`."""

    def __init__(self, marks: Marks, functions: Collection[str]) -> None:
        super().__init__()
        self._marks = marks
        self._functions = functions
        self._start = re.compile("|".join(map(re.escape, marks.starts))) if marks.starts else None
        self._state: State = "text"
        self._buffer = ""  # in text: what may become a start
        self._raw = ""  # since the last whole call
        self._named = ""  # a name, or what closes calls
        self._listed = False
        self._bare = False  # the calls stand without a start
        self._reader: CallReader | None = None

    def feed(self, text: str) -> list[Part]:
        rest = text
        while rest:
            rest = self._in_text(rest) if self._state == "text" else self._in_calls(rest)
        return self._take()

    def finish(self) -> list[Part]:
        if self._state in ("open", "name", "call"):
            self._give_up()
        self._say(self._buffer)
        self._buffer = ""
        self._say_no_more()
        return self._take()

    def _take(self) -> list[Part]:
        if self._reader is not None:
            self._parts += self._reader.take()
        return super()._take()

    def _in_text(self, text: str) -> str:
        """Look for a start; what follows it is left."""
        text = self._buffer + text
        self._buffer = ""
        if self._marks.bare and not self._said and not self._calls:
            stripped = text.lstrip(WHITESPACE)
            if stripped.startswith("{" if self._marks.starts else ("{", "[")):
                self._space += text[: len(text) - len(stripped)]
                self._open("")
                return stripped
        found = self._start.search(text) if self._start else None
        if found:
            self._say(text[: found.start()])
            self._open(found.group())
            return text[found.end() :]
        keep = max((overlap(text, start) for start in self._marks.starts), default=0)
        self._buffer = text[len(text) - keep :]
        self._say(text[: len(text) - keep])
        return ""

    def _open(self, start: str) -> None:
        self._state, self._raw, self._bare = "open", start, not start
        self._listed, self._named = False, ""

    def _in_calls(self, text: str) -> str:
        """Read on in calls until they end; what follows them is left."""
        for at, char in enumerate(text):
            try:
                more = self._step(char)
            except NotJson:
                self._give_up()
                return text[at:]
            if not more:
                left = self._named + text[at:]
                self._named = ""
                return left
            self._raw += char
            if self._state == "text":
                return text[at + 1 :]
            if self._reader is not None and self._reader.done:
                self._call_done()
        return ""

    def _step(self, char: str) -> bool:
        """Take a character. False: it isn't part of the calls, which were whole. Raises NotJson for what is no call."""
        if self._state == "call":
            assert self._reader is not None
            self._reader.push(char)
            if self._named and self._reader.between:
                self._reader.push("}")
            return True
        if self._state == "open":
            return self._opened(char)
        if self._state == "name":
            return self._name_goes_on(char)
        return self._after_call(char)

    def _opened(self, char: str) -> bool:
        if char == "{":
            self._begin(char)
        elif char == "[" and not self._listed:
            self._listed = True
        elif char not in WHITESPACE:
            if not self._marks.named or self._listed:
                raise NotJson
            self._state, self._named = "name", char
        return True

    def _name_goes_on(self, char: str) -> bool:
        """A name up to its arguments, which are then read as if the whole call were written out."""
        if char == "{":
            name, more, _ = self._named.partition("[")
            if not _NAME.fullmatch(name.strip()) or (more and not self._named.endswith(self._marks.argument_mark)):
                raise NotJson
            self._begin(f'{{"name": "{name.strip()}", "arguments": {{')
        elif len(self._named) > MAX_HEAD:
            raise NotJson
        else:
            self._named += char
        return True

    def _begin(self, opening: str) -> None:
        accepts = self._functions.__contains__ if self._bare else _any
        self._reader = CallReader(self._calls, accepts, strict=self._bare)
        self._state = "call"
        for char in opening:
            self._reader.push(char)

    def _call_done(self) -> None:
        assert self._reader is not None
        self._parts += self._reader.take()
        self._reader, self._raw, self._named = None, "", ""
        self._calls += 1
        self._state = "between" if self._listed else "closing"

    def _after_call(self, char: str) -> bool:
        if not self._named:
            if char in WHITESPACE:
                return True
            if char == "{" and not self._listed:
                self._begin(char)
                return True
            if self._state == "between" and char in ",]":
                self._state = "open" if char == "," else "closing"
                self._listed = char == ","
                self._raw = ""
                return True
            if char == self._marks.separator:
                self._state = "open"
                return True
        end = self._marks.end
        if self._state == "closing" and end.startswith(self._named + char):
            self._named += char
            if self._named == end:
                self._state, self._named = "text", ""
            return True
        self._state = "text"
        return False

    def _give_up(self) -> None:
        """What began as a call is none: all its text is content."""
        if self._reader is not None:
            self._parts += self._reader.take()
            if self._reader.named:
                self._parts.append(Part("broken", "", self._calls))
                self._calls += 1
            self._reader = None
        raw, self._raw, self._named, self._state = self._raw, "", "", "text"
        self._say(raw)


def _any(_name: str) -> bool:
    return True


class MarkedFormat:
    """What formats of calls between marks have in common."""

    marks: ClassVar[Marks]

    def parser(self, functions: Functions) -> TextParser:
        return MarkedCalls(self.marks, functions)

    def call_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"
