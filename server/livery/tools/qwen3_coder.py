"""Qwen3-Coder and what follows it: functions and their arguments between tags, no JSON but for lists and objects."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence

from livery.tools.events import Functions, TextParser
from livery.tools.tagged import CALL, CALL_END, FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END, TaggedCalls
from livery.tools.telling import described


class Qwen3Coder:
    """See `events.ToolFormat`."""

    name: str = "qwen3_coder"
    markers: tuple[str, ...] = (CALL, CALL_END)
    around: tuple[str, str] | None = None  # what stands between is no JSON that a schema could hold

    def recognises(self, template: str) -> bool:
        return FUNCTION in template and PARAMETER in template

    def parser(self, functions: Functions) -> TextParser:
        return TaggedCalls(functions)

    def call_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"

    def preamble(self, tools: Sequence[Mapping[str, object]]) -> str:
        return (
            f"You have these functions:\n<tools>\n{described(tools)}\n</tools>\n\n"
            f"To call one, answer with its name and each of its arguments between tags:\n"
            f"{CALL}\n{FUNCTION}FUNCTION>\n{PARAMETER}ARGUMENT>\nVALUE\n{PARAMETER_END}\n{FUNCTION_END}\n{CALL_END}"
        )

    def call_text(self, calls: Sequence[Mapping[str, object]]) -> str:
        return "\n".join(map(_written, calls))


def _written(call: Mapping[str, object]) -> str:
    arguments = call.get("arguments")
    told = "".join(
        f"{PARAMETER}{name}>\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n"
        f"{PARAMETER_END}\n"
        for name, value in (arguments.items() if isinstance(arguments, Mapping) else ())
    )
    return f"{CALL}\n{FUNCTION}{call.get('name')}>\n{told}{FUNCTION_END}\n{CALL_END}"
