"""Llama 3.1 to 3.3: the answer is a call, `{"name": ..., "parameters": {...}}`, with or without `<|python_tag|>` before
it; several stand between semicolons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from livery.tools.marked import MarkedFormat, Marks
from livery.tools.telling import called, described

MARKS = Marks(("<|python_tag|>",), bare=True, separator=";")


class Llama3(MarkedFormat):
    """See `events.ToolFormat`."""

    marks = MARKS
    name: str = "llama3_json"
    markers: tuple[str, ...] = ("<|python_tag|>",)
    around: tuple[str, str] | None = None

    def recognises(self, template: str) -> bool:
        return "<|python_tag|>" in template or ("<|start_header_id|>" in template and '"parameters": ' in template)

    def preamble(self, tools: Sequence[Mapping[str, object]]) -> str:
        return (
            "You have these functions:\n"
            f"{described(tools)}\n\n"
            "To call one, answer with nothing but a JSON object: "
            '{"name": "FUNCTION", "parameters": {"ARGUMENT": "VALUE"}}'
        )

    def call_text(self, calls: Sequence[Mapping[str, object]]) -> str:
        return "; ".join(called(call, "parameters") for call in calls)
