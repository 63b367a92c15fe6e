"""Reads one call, `{"name": ..., "arguments": {...}}`, one character at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from livery.tools.events import Part
from livery.tools.json_reader import WHITESPACE, JsonReader, NotJson

ARGUMENTS = ("arguments", "parameters")
KNOWN_KEYS = frozenset({"name", "type", "id", *ARGUMENTS})
MAX_NAME = 256

State = Literal["open", "member", "key", "colon", "value", "after", "done"]


class CallReader:
    """Reads one call's object. `take` gives its parts: the call once its name is known, then its arguments.

    Arguments are passed on as they come if the name stands before them. `accepts` says which names are calls; `strict`
    takes no keys but those of calls, so that other JSON is told apart early.
    """

    def __init__(self, index: int, accepts: Callable[[str], bool], *, strict: bool = False) -> None:
        self.index = index
        self._parts: list[Part] = []
        self._passed: list[str] = []  # characters of arguments, to become one part
        self._accepts = accepts
        self._strict = strict
        self._state: State = "open"
        self._reader = JsonReader()
        self._text = ""  # of the key or value being read
        self._key = ""
        self._name: str | None = None
        self._arguments: str | None = None  # whole, until they may be passed on
        self._passing = False

    @property
    def done(self) -> bool:
        return self._state == "done"

    @property
    def named(self) -> bool:
        """Whether the call has been announced: its name is known."""
        return self._name is not None

    @property
    def between(self) -> bool:
        """Whether a key's value has just been read."""
        return self._state == "after"

    def take(self) -> list[Part]:
        """The parts since the last time."""
        self._join()
        parts, self._parts = self._parts, []
        return parts

    def push(self, char: str) -> None:
        """Raises NotJson when this can't become a call."""
        if self._state in ("key", "value"):
            if self._read(char):
                return
            self._value_read()  # a number ended before this character
        if char in WHITESPACE:
            return
        if (self._state, char) == ("open", "{"):
            self._state = "member"
        elif char == '"' and self._state == "member":
            self._begin("key", char)
        elif (self._state, char) == ("colon", ":"):
            self._state = "value"
            self._reader, self._text = JsonReader(), ""
        elif (self._state, char) == ("after", ","):
            self._state = "member"
        elif (self._state, char) == ("after", "}"):
            self._end()
        else:
            raise NotJson

    def _begin(self, state: State, char: str) -> None:
        self._state = state
        self._reader, self._text = JsonReader(), ""
        self._read(char)

    def _read(self, char: str) -> bool:
        """Whether the character belongs to the key or value being read."""
        written = self._reader.push(char)
        if written is None:
            return False
        if not self._text and char in WHITESPACE:
            return True
        if not self._text and self._state == "value":
            self._passing = self._key in ARGUMENTS and char == "{" and self._name is not None
        self._text += written
        if self._passing:
            self._passed.append(written)
        if self._reader.done:
            if self._state == "key":
                self._key_read()
            else:
                self._value_read()
        return True

    def _key_read(self) -> None:
        self._key = json.loads(self._text)
        self._state = "colon"
        if self._key in ARGUMENTS and self._arguments is not None:
            raise NotJson  # twice
        if self._strict and self._key not in KNOWN_KEYS:
            raise NotJson

    def _value_read(self) -> None:
        self._state = "after"
        if self._key == "name":
            self._named(json.loads(self._text))
        elif self._key in ARGUMENTS:
            self._arguments = "" if self._passing else _object(self._text)
        self._passing = False

    def _named(self, name: object) -> None:
        if self._name is not None or not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise NotJson
        if not _writable(name) or not self._accepts(name):
            raise NotJson
        self._name = name
        self._parts.append(Part("call", name, self.index))

    def _end(self) -> None:
        if self._name is None:
            raise NotJson
        # Arguments that stood before the name or came as a text; functions without any are called without.
        if self._arguments is None:
            self._arguments = "{}"
        if self._arguments:
            self._passed.append(self._arguments)
        self._join()
        self._parts.append(Part("complete", "", self.index))
        self._state = "done"

    def _join(self) -> None:
        if self._passed:
            self._parts.append(Part("arguments", "".join(self._passed), self.index))
            self._passed = []


def _writable(text: str) -> bool:
    """JSON may spell half of a surrogate pair, which can't be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(text: str) -> str:
    """Arguments as the text of an object: models also write null, or the object as a text. Raises NotJson."""
    value = json.loads(text)
    if isinstance(value, dict):
        return text
    if value is None:
        return "{}"
    try:
        inner = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        inner = None
    if not isinstance(inner, dict) or not _writable(value):
        raise NotJson
    return str(value)
