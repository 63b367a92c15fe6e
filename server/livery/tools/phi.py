"""Phi 4 mini: `<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>`, or `functools[...]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from livery.tools.marked import MarkedFormat, Marks
from livery.tools.telling import called, described

MARKS = Marks(("<|tool_call|>", "functools"), end="<|/tool_call|>")


class Phi(MarkedFormat):
    """See `events.ToolFormat`."""

    marks = MARKS
    name: str = "phi4_mini_json"
    markers: tuple[str, ...] = ("<|tool_call|>", "<|/tool_call|>")
    around: tuple[str, str] | None = None

    def recognises(self, template: str) -> bool:
        return "<|tool_call|>" in template or "<|tool|>" in template

    def preamble(self, tools: Sequence[Mapping[str, object]]) -> str:
        return (
            f"You have these functions: <|tool|>\n{described(tools)}\n<|/tool|>\n\n"
            "To call them, answer with a JSON list of calls between <|tool_call|> and <|/tool_call|>: "
            '<|tool_call|>[{"name": "FUNCTION", "arguments": {"ARGUMENT": "VALUE"}}]<|/tool_call|>'
        )

    def call_text(self, calls: Sequence[Mapping[str, object]]) -> str:
        return f"<|tool_call|>[{', '.join(called(call, 'arguments') for call in calls)}]<|/tool_call|>"
