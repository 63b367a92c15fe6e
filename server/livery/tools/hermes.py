"""Hermes, Qwen 2.5 and 3 and their many fine-tunes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

SmolLM2 writes a list of calls between the same tags.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from livery.tools.events import TextParser
from livery.tools.marked import MarkedCalls, Marks
from livery.tools.telling import called, described

MARKS = Marks(("<tool_call>",), end="</tool_call>")


class Hermes:
    """See `events.ToolFormat`."""

    name: str = "hermes"
    markers: tuple[str, ...] = ("<tool_call>", "</tool_call>")
    around: tuple[str, str] | None = ("<tool_call>", "</tool_call>")

    def recognises(self, template: str) -> bool:
        return "<tool_call>" in template

    def parser(self, functions: frozenset[str]) -> TextParser:
        return MarkedCalls(MARKS, functions)

    def call_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"

    def preamble(self, tools: Sequence[Mapping[str, object]]) -> str:
        return (
            "You may call one or more functions to help with the user's request. Their signatures stand between "
            f"<tools></tools>:\n<tools>\n{described(tools)}\n</tools>\n\n"
            "For each call, answer with a JSON object with the function's name and its arguments between "
            '<tool_call></tool_call>:\n<tool_call>\n{"name": "FUNCTION", "arguments": {"ARGUMENT": "VALUE"}}\n'
            "</tool_call>"
        )

    def call_text(self, calls: Sequence[Mapping[str, object]]) -> str:
        return "\n".join(f"<tool_call>\n{called(call, 'arguments')}\n</tool_call>" for call in calls)
