"""What names stand for, as far as it was asked lately."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from livery_adapters.names import LONGEST_NAME
from livery_adapters.registry import OPERATOR_TENANT, Alias, NamedVersion, Reader, Registry

KEPT_OF_REPORTS = ("task", "num_labels", "added_tokens")  # of a coverage report, which may be long
REMEMBERED = 16_384  # names, each for whoever asked: also what isn't there for them


@dataclass(frozen=True, slots=True)
class Standing:
    """What is remembered of a name: its active version, with no more of its report than requests need."""

    active: NamedVersion | None
    error: str
    owner: str = OPERATOR_TENANT
    generation: int = 0


class KnownNames:
    """Names in full with what they stand for to a reader; asked of the registry, remembered, forgotten when it changes.

    Of names that a reader may not use no more is remembered than of those that aren't there. Use from one event loop.
    """

    def __init__(self, registry: Registry, most: int = REMEMBERED) -> None:
        self._registry = registry
        self._most = most
        self._entries: OrderedDict[tuple[str, Reader | None], Standing | Alias | None] = OrderedDict()
        self._readers: defaultdict[str, set[Reader | None]] = defaultdict(set)  # of the entries of a name
        self._epoch = 0

    async def entry(self, name: str, reader: Reader | None) -> Standing | Alias | None:
        """What a name in full stands for. Raises RegistryError."""
        if len(name) > LONGEST_NAME:
            return None
        key = (name, reader)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        epoch = self._epoch
        found = await asyncio.to_thread(look_up, self._registry, name, reader)
        if epoch == self._epoch:  # nothing changed while it was read
            self._entries[key] = found
            self._readers[name].add(reader)
            if len(self._entries) > self._most:
                self._drop(next(iter(self._entries)))
        return found

    def forget(self, names: Iterable[str] | None) -> None:
        """These names changed, or (None) any may have."""
        self._epoch += 1
        for name in list(self._readers) if names is None else names:
            for reader in self._readers.pop(name, ()):
                del self._entries[name, reader]

    def _drop(self, key: tuple[str, Reader | None]) -> None:
        del self._entries[key]
        name, reader = key
        self._readers[name].discard(reader)
        if not self._readers[name]:
            del self._readers[name]


def look_up(registry: Registry, name: str, reader: Reader | None = None) -> Standing | Alias | None:
    """What the registry says a name stands for to this reader (None: to one who sees all)."""
    record = registry.find(name, reader=reader)
    if record is None:
        return registry.find_alias(name, reader)
    version = record.active
    if version is not None:
        kept = {name: value for name, value in version.facts.coverage.items() if name in KEPT_OF_REPORTS}
        version = replace(version, facts=replace(version.facts, coverage=kept))
    return Standing(version, record.error or record.state, record.owner, record.generation)
