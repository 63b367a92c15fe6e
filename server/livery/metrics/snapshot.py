"""What a scrape is told by others."""

from __future__ import annotations

from dataclasses import dataclass

from livery.engine.base import EngineStats


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the engine and the registry say at the moment of a scrape."""

    stats: EngineStats
    served: int | None = None  # adapters that take requests; None: the registry didn't answer, and no name is known
    gone: tuple[str, ...] = ()  # adapters with counts that no longer do
    resident: tuple[str, ...] = ()  # adapter names in device memory
    waiting: tuple[str, ...] = ()  # adapter names that waiting requests need and that are not resident
