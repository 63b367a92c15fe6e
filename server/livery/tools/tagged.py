"""Reads calls whose arguments stand between tags of their own, as Qwen3-Coder writes them.

    <tool_call>
    <function=weather>
    <parameter=city>
    Zürich
    </parameter>
    </function>
    </tool_call>

The outer tags may be missing. An argument that is text comes as it is written, others once they are whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Literal

from livery.tools.events import Functions, Part
from livery.tools.json_reader import WHITESPACE
from livery.tools.prose import Prose, overlap
from livery.tools.schema_types import as_json, is_text, types_of

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_START = re.compile(f"{CALL}|{FUNCTION}")
_FUNCTION = re.compile(rf"\s*{FUNCTION}([\w.-]{{1,128}})>", re.ASCII)
_PARAMETER = re.compile(rf"\s*{PARAMETER}([^<>\s]{{1,128}})>")
_FUNCTION_END = re.compile(rf"\s*{FUNCTION_END}")
_CALL_END = re.compile(rf"\s*{CALL_END}")
# What may become the above with more text.
_TOWARDS_FUNCTION = re.compile(rf"\s*{FUNCTION}[\w.-]{{0,128}}", re.ASCII)
_TOWARDS_PARAMETER = re.compile(rf"\s*{PARAMETER}[^<>\s]{{0,128}}")

State = Literal["text", "open", "function", "value", "closing"]


class TaggedCalls(Prose):
    """The text parser for such calls; see `events.TextParser`."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self._functions = functions
        self._state: State = "text"
        self._buffer = ""  # not understood yet
        self._raw = ""  # of the call that is being read
        self._schema: Mapping[str, object] | None = None
        self._keys: set[str] = set()
        self._types: frozenset[str] = frozenset()
        self._begun = False  # the call has a name
        self._fresh = False  # nothing of the value was read
        self._looked = 0  # up to where the buffer has no end of the value

    def feed(self, text: str) -> list[Part]:
        self._buffer += text
        while self._advance():
            pass
        return self._take()

    def finish(self) -> list[Part]:
        if self._state in ("open", "function", "value"):
            self._consume(len(self._buffer))
            self._give_up()
        if self._state == "text":
            self._say(self._buffer)
        self._buffer = ""
        self._say_no_more()
        return self._take()

    def _advance(self) -> bool:
        """Understand one thing more. False: that needs more text."""
        if not self._buffer:
            return False
        match self._state:
            case "text":
                return self._in_text()
            case "open":
                return self._opened()
            case "function":
                return self._in_function()
            case "value":
                return self._in_value()
            case "closing":
                return self._closing()

    def _in_text(self) -> bool:
        if found := _START.search(self._buffer):
            self._say(self._buffer[: found.start()])
            self._buffer = self._buffer[found.start() :]
            self._state, self._raw, self._begun = "open", "", False
            if found.group() == CALL:
                self._consume(len(CALL))
            return True
        keep = max(overlap(self._buffer, start) for start in (CALL, FUNCTION))
        said, self._buffer = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
        self._say(said)
        return False

    def _opened(self) -> bool:
        if found := _FUNCTION.match(self._buffer):
            self._consume(found.end())
            self._parts.append(Part("call", found[1], self._calls))
            self._schema, self._keys = self._functions.get(found[1]), set()
            self._state, self._begun = "function", True
            return True
        return self._wait_or_give_up(_TOWARDS_FUNCTION, FUNCTION)

    def _in_function(self) -> bool:
        if found := _PARAMETER.match(self._buffer):
            key = found[1]
            if key in self._keys:
                return self._give_up()
            self._consume(found.end())
            self._types = types_of(self._schema, key)
            quote = '"' if is_text(self._types) else ""
            self._argue(f"{', ' if self._keys else '{'}{json.dumps(key, ensure_ascii=False)}: {quote}")
            self._keys.add(key)
            self._state, self._fresh = "value", True
            return True
        if found := _FUNCTION_END.match(self._buffer):
            self._argue("}" if self._keys else "{}")
            self._parts.append(Part("complete", "", self._calls))
            self._calls += 1
            self._buffer, self._raw, self._state = self._buffer[found.end() :], "", "closing"
            return True
        return self._wait_or_give_up(_TOWARDS_PARAMETER, PARAMETER, FUNCTION_END)

    def _in_value(self) -> bool:
        if self._fresh:
            self._fresh = False
            if self._buffer.startswith("\n"):
                self._consume(1)
                return True
        at = self._buffer.find(PARAMETER_END, self._looked)
        self._looked = max(0, len(self._buffer) - len(PARAMETER_END)) if at < 0 else 0
        if at < 0:
            if is_text(self._types):
                held = max(overlap(self._buffer, mark) for mark in (f"\n{PARAMETER_END}", PARAMETER_END))
                self._argue(_inside(self._consume(len(self._buffer) - held)))
                self._looked = 0
            return False
        value = self._consume(at).removesuffix("\n")
        self._consume(len(PARAMETER_END))
        self._argue(f'{_inside(value)}"' if is_text(self._types) else as_json(value, self._types))
        self._state = "function"
        return True

    def _closing(self) -> bool:
        """The outer end, if there is one."""
        if found := _CALL_END.match(self._buffer):
            self._buffer, self._state = self._buffer[found.end() :], "text"
            return True
        if CALL_END.startswith(self._buffer.lstrip(WHITESPACE)):
            return False
        self._state = "text"
        return True

    def _wait_or_give_up(self, towards: re.Pattern[str], *marks: str) -> bool:
        stripped = self._buffer.lstrip(WHITESPACE)
        if towards.fullmatch(self._buffer) or any(mark.startswith(stripped) for mark in marks):
            return False
        return self._give_up()

    def _give_up(self) -> bool:
        """What began as a call is none: all its text is content."""
        if self._begun:
            self._parts.append(Part("broken", "", self._calls))
            self._calls += 1
        if not self._raw:
            self._consume(1)  # of what looked like a start, which mustn't again
        raw, self._raw, self._state, self._begun = self._raw, "", "text", False
        self._say(raw)
        return True

    def _consume(self, count: int) -> str:
        read, self._buffer = self._buffer[:count], self._buffer[count:]
        self._raw += read
        return read

    def _argue(self, text: str) -> None:
        if text:
            self._parts.append(Part("arguments", text, self._calls))


def _inside(text: str) -> str:
    """What stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
