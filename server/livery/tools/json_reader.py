"""Reads JSON one character at a time, so that the arguments of a call can be passed on while they are written.

The grammar is RFC 8259's, but for control characters within strings: models write line breaks there, which are escaped.
"""

from __future__ import annotations

import re
from typing import Literal

WHITESPACE = " \t\n\r"
MAX_DEPTH = 100
MAX_NUMBER = 400  # characters
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_LITERALS = ("true", "false", "null")
_HEX = frozenset("0123456789abcdefABCDEF")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# What may come next. "first" stands for a value or the end of an array, "member" for a key or the end of an object.
State = Literal["value", "first", "key", "member", "colon", "after", "string", "escape", "hex", "scalar", "end"]


class NotJson(Exception):
    """The text can't be the beginning of a JSON value."""


class JsonReader:
    """Reads one value. `done` once it is whole, which a number or a literal is only with the character after it."""

    def __init__(self) -> None:
        self._stack: list[str] = []  # of "[" and "{"
        self._state: State = "value"
        self._is_key = False
        self._scalar = ""
        self._hex = 0

    @property
    def done(self) -> bool:
        return self._state == "end"

    def push(self, char: str) -> str | None:
        """The character as it is to be written, None for one that comes after the value. Raises NotJson."""
        if self._state == "string":
            return self._in_string(char)
        if self._state == "escape":
            self._escaped(char)
            return char
        if self._state == "hex":
            self._hex_digit(char)
            return char
        if self._state == "scalar":
            if char not in WHITESPACE and char not in ",]}":
                self._scalar_goes_on(char)
                return char
            self._scalar_ends()
        if self._state == "end":
            return None
        if char not in WHITESPACE:
            self._token(char)
        return char

    def _token(self, char: str) -> None:
        state = self._state
        if char == '"' and state in ("value", "first", "key", "member"):
            self._is_key, self._state = state in ("key", "member"), "string"
        elif char in "{[" and state in ("value", "first"):
            if len(self._stack) >= MAX_DEPTH:
                raise NotJson
            self._stack.append(char)
            self._state = "member" if char == "{" else "first"
        elif state in ("value", "first") and char not in ",]}:":
            self._scalar, self._state = "", "scalar"
            self._scalar_goes_on(char)
        elif state == "colon" and char == ":":
            self._state = "value"
        elif state == "after" and char == ",":
            self._state = "key" if self._stack[-1] == "{" else "value"
        elif self._closes(char):
            self._stack.pop()
            self._value_ends()
        else:
            raise NotJson

    def _closes(self, char: str) -> bool:
        opened = self._stack[-1] if self._stack else ""
        empty = "member" if opened == "{" else "first"
        return self._state in ("after", empty) and (opened, char) in (("{", "}"), ("[", "]"))

    def _value_ends(self) -> None:
        self._state = "after" if self._stack else "end"

    def _in_string(self, char: str) -> str:
        if char == "\\":
            self._state = "escape"
        elif char == '"':
            if self._is_key:
                self._state = "colon"
            else:
                self._value_ends()
        elif char < " ":
            return _ESCAPES.get(char, f"\\u{ord(char):04x}")
        return char

    def _escaped(self, char: str) -> None:
        if char == "u":
            self._state, self._hex = "hex", 4
        elif char in '"\\/bfnrt':
            self._state = "string"
        else:
            raise NotJson

    def _hex_digit(self, char: str) -> None:
        if char not in _HEX:
            raise NotJson
        self._hex -= 1
        if not self._hex:
            self._state = "string"

    def _scalar_goes_on(self, char: str) -> None:
        self._scalar += char
        literal = any(word.startswith(self._scalar) for word in _LITERALS)
        if not literal and (char not in "+-.0123456789eE" or self._scalar[0] not in "-0123456789"):
            raise NotJson
        if len(self._scalar) > MAX_NUMBER:
            raise NotJson

    def _scalar_ends(self) -> None:
        if self._scalar not in _LITERALS and not _NUMBER.fullmatch(self._scalar):
            raise NotJson
        self._value_ends()
