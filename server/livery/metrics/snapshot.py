"""What a scrape is told by others."""

from __future__ import annotations

from dataclasses import dataclass

from livery.engine.base import EngineStats


@dataclass(frozen=True, slots=True)
class Standing:
    """How adapters stand by name: how many take requests, and which with counts no longer do; which are in device
    memory, and which waiting requests need that aren't.
    """

    served: int
    gone: tuple[str, ...] = ()
    resident: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the engine and the registry say at the moment of a scrape; `adapters` is None where the latter doesn't
    answer. `gone_tenants` have counts and are no more.
    """

    stats: EngineStats
    adapters: Standing | None = None
    gone_tenants: tuple[str, ...] = ()
