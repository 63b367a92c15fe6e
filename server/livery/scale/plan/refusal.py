"""What a plan is refused for."""

from __future__ import annotations

from collections.abc import Iterable

from livery_adapters.likeness import meant


class PlanRefused(ValueError):
    """No plan can be made of what was asked; the message names the thing, the value and the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for a name that isn't known: those most like it, or all."""
    names = list(known)
    return meant(name.lower(), names, 3, 0.4) or f"known are {', '.join(names)}"
