"""All adapters in few words, kept in memory: read once, and afterwards only what changed. For tables that are asked for
every other second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from livery.metrics import Standing
from livery_adapters.registry import Brief, Registry


class Roster:
    """What the registry says of every adapter. Use from one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen = -1  # changes of the registry
        self._briefs: dict[str, Brief] = {}
        self._reading = asyncio.Lock()

    @property
    def known(self) -> dict[str, Brief]:
        """As of the last reading, by name."""
        return self._briefs

    async def read(self) -> dict[str, Brief]:
        """As of now, by name. Raises RegistryError."""
        async with self._reading:
            self._seen, self._briefs = await asyncio.to_thread(self._changed, self._seen, self._briefs)
        return self._briefs

    def _changed(self, seen: int, briefs: dict[str, Brief]) -> tuple[int, dict[str, Brief]]:
        now, names = self._registry.changes(seen)
        if names is None:
            return now, {brief.name: brief for brief in self._registry.briefs()}
        if not names:
            return now, briefs
        changed = set(names)
        left = {name: brief for name, brief in briefs.items() if name not in changed}
        return now, left | {brief.name: brief for brief in self._registry.briefs(names)}


def standing(
    briefs: Iterable[Brief], device: Collection[str], waiting: Collection[str], counted: Iterable[str]
) -> Standing:
    """From what the registry says of all adapters, the files in device memory and those that requests wait for, and the
    names that have counts. Some milliseconds for ten thousand.
    """
    served = {brief.name: brief.weights for brief in briefs if brief.active is not None}
    return Standing(
        len(served),
        tuple(name for name in counted if name not in served),
        tuple(sorted(name for name, files in served.items() if files in device)),
        tuple(sorted(name for name, files in served.items() if files in waiting and files not in device)),
    )
