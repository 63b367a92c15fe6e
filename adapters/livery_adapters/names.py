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
        "share",
        "unload",
        "unpin",
        "unshare",
        "versions",
    }
)
OPERATOR_TENANT = "default"  # the tenant whose everything is that no other tenant owns
FOLDER = "folder"  # who gave it, of a version that the followed folder gave
MIN_DIGEST_PREFIX = 8
LONGEST_NAME = 128

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{LONGEST_NAME - 1}}}")


def prefix_of(owner: str) -> str:
    """How the names in full of a tenant's adapters begin; the operator's own have no prefix."""
    return "" if owner == OPERATOR_TENANT else f"{owner}/"


def account_of(name: str) -> str:
    """Whose turn it is when something long is done for a name in full: its tenant's, or its first part's."""
    first, inside, _ = name.partition("/")
    return first if inside else OPERATOR_TENANT


def validate_name(name: str, reserved: Collection[str] = (), owner: str = OPERATOR_TENANT) -> None:
    """Raise AdapterRefused (invalid_name) unless `owner` may call an adapter `name`, which is the name in full.

    The message has it as its owner knows it.
    """
    prefix = prefix_of(owner)
    if not name.startswith(prefix):
        raise AdapterRefused("invalid_name", f"{name[:160]!r} can't name an adapter of {owner}: put {prefix} before it")
    shown = name.removeprefix(prefix)
    segments = shown.split("/")
    if not _NAME.fullmatch(name) or not _NAME.fullmatch(shown) or any(part in ("", ".", "..") for part in segments):
        longest = LONGEST_NAME - len(prefix)
        problem = f"use up to {longest} letters, digits and . _ : / -, beginning with a letter or digit"
    elif segments[-1] in RESERVED_VERBS:
        problem = f"{segments[-1]!r} is reserved as the last part of a name"
    elif shown in reserved or name in reserved:
        problem = "the base model has this name"
    else:
        return
    raise AdapterRefused("invalid_name", f"{shown[:160]!r} can't name an adapter: {problem}; rename it")
