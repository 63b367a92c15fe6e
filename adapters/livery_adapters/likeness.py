"""What somebody may have meant by a name that isn't known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LIKE = 0.6  # of names, as difflib measures it, from which on one may be meant by the other


def meant(name: str, known: Iterable[str], most: int = 1, like: float = LIKE) -> str:
    """ "did you mean x or y?", with the names most like it, the likest first; nothing where none is like it."""
    near = difflib.get_close_matches(name, list(known), most, cutoff=like)
    return f"did you mean {' or '.join(near)}?" if near else ""
