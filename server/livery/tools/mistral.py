"""Mistral: `[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`, and since its eleventh tokenizer
`[TOOL_CALLS]NAME[ARGS]{...}` for each call.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping, Sequence

from livery.tools.marked import MarkedFormat, Marks
from livery.tools.telling import called, described

MARKS = Marks(("[TOOL_CALLS]",), named=True, argument_mark="[ARGS]")
ID_LENGTH = 9  # its templates take ids of exactly so many letters and digits


class Mistral(MarkedFormat):
    """See `events.ToolFormat`."""

    marks = MARKS
    name: str = "mistral"
    markers: tuple[str, ...] = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    around: tuple[str, str] | None = None

    def recognises(self, template: str) -> bool:
        return "[TOOL_CALLS]" in template

    def call_id(self) -> str:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_LENGTH))

    def preamble(self, tools: Sequence[Mapping[str, object]]) -> str:
        return (
            f"You have these functions:\n{described(tools)}\n\n"
            "To call them, answer with [TOOL_CALLS] and a JSON list of calls: "
            '[TOOL_CALLS] [{"name": "FUNCTION", "arguments": {"ARGUMENT": "VALUE"}}]'
        )

    def call_text(self, calls: Sequence[Mapping[str, object]]) -> str:
        return f"[TOOL_CALLS] [{', '.join(called(call, 'arguments') for call in calls)}]"
