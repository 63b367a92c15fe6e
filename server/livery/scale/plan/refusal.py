"""What a plan is refused for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlanRefused(ValueError):
    """No plan can be made of what was asked; the message names the thing, the value and the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for a name that isn't known: those most like it, or all."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, 3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
