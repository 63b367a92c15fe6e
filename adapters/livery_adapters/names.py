"""What an adapter or alias may be called."""

from __future__ import annotations

import re
from collections.abc import Collection

from livery_adapters.refusal import AdapterRefused

# Last segments of management routes: a name that ended in one could not be told from a verb.
RESERVED_VERBS = frozenset(
    {
        "activate",
        "alias",
        "check",
        "export",
        "load",
        "pin",
        "prefetch",
        "profile",
        "retire",
        "rollback",
        "unload",
        "unpin",
        "versions",
    }
)
MIN_DIGEST_PREFIX = 8
LONGEST_NAME = 128

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{LONGEST_NAME - 1}}}")


def validate_name(name: str, reserved: Collection[str] = ()) -> None:
    """Raise AdapterRefused (invalid_name) unless an adapter may be called `name`."""
    segments = name.split("/")
    if not _NAME.fullmatch(name) or any(segment in ("", ".", "..") for segment in segments):
        problem = f"use up to {LONGEST_NAME} letters, digits and . _ : / -, beginning with a letter or digit"
    elif segments[-1] in RESERVED_VERBS:
        problem = f"{segments[-1]!r} is reserved as the last part of a name"
    elif name in reserved:
        problem = "the base model has this name"
    else:
        return
    raise AdapterRefused("invalid_name", f"{name[:160]!r} can't name an adapter: {problem}; rename it")
