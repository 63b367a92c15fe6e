"""What an adapter's profile may name to have its answers read."""

from __future__ import annotations

from livery.tools.formats import NAMES
from livery.tools.reasoning import REASONING_NAMES


def unknown_parser(tool_parser: str | None, reasoning_parser: str | None) -> str | None:
    """What is wrong, and the names there are; None where both are known or not given."""
    for field, named, known in (
        ("tool_parser", tool_parser, NAMES),
        ("reasoning_parser", reasoning_parser, REASONING_NAMES),
    ):
        if named is not None and named not in known:
            return f"{field} is {named!r}; use one of {', '.join(known)}"
    return None
