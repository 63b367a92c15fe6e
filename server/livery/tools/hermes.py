"""Hermes, Qwen 2.5 and 3 and their many fine-tunes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

SmolLM2 writes a list of calls between the same tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from livery.tools.marked import MarkedFormat, Marks
from livery.tools.telling import called, described

MARKS = Marks(("<tool_call>",), end="</tool_call>")
# What others write between the same tags, which isn't JSON: Qwen3-Coder and GLM 4.5.
OTHERS = ("<function=", "<arg_key>")


class Hermes(MarkedFormat):
    """See `events.ToolFormat`."""

    marks = MARKS
    name: str = "hermes"
    markers: tuple[str, ...] = ("<tool_call>", "</tool_call>")
    around: tuple[str, str] | None = ("<tool_call>", "</tool_call>")

    def recognises(self, template: str) -> bool:
        return "<tool_call>" in template and not any(mark in template for mark in OTHERS)

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
