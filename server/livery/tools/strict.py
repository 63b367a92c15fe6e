"""Answers that may call functions, held to their schemas wherever they do: text is free until a mark opens a call.

As llguidance's documentation has it: lexemes compete, and the lazy one that ends in the mark wins as soon as it is
written, after which only calls match.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from livery.engine.base import Grammar

SPACE = r"/[ \t\r\n]*/"
ANY = r"(?s:.*)"


def marked_calls_grammar(
    around: tuple[str, str], call: Mapping[str, object], special: Mapping[str, int], *, parallel: bool
) -> Grammar:
    """Text, and calls between two marks which match the schema `call`: one at most, or any number.

    `special` are those of the marks that are special tokens, by id, which no text of a grammar stands for.
    """
    start, end = around
    mark = re.escape(start).replace("/", r"\/")
    before = f"before: TEXT <[{special[start]}]>" if start in special else f"before[lazy]: /{ANY}{mark}/"
    after = f"<[{special[end]}]>" if end in special else json.dumps(end)
    lines = (
        f"start: (before call){'*' if parallel else '?'} TEXT",
        before,
        f"call: SPACE json SPACE {after}",
        f"json: %json {json.dumps(call)}",
        f"TEXT: /{ANY}/ & ~/{ANY}{mark}{ANY}/",
        f"SPACE: {SPACE}",
    )
    return Grammar("lark", "\n".join(lines))
