"""What is remembered of a name between requests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from livery_adapters.registry import Alias, NamedVersion, Registry


@dataclass(frozen=True, slots=True)
class Standing:
    """What is remembered of a name: its active version, without what the report says of every module."""

    active: NamedVersion | None
    error: str


def look_up(registry: Registry, name: str) -> Standing | Alias | None:
    record = registry.find(name)
    if record is None:
        return registry.find_alias(name)
    version = record.active
    if version is not None:
        version = replace(version, facts=replace(version.facts, coverage={}))
    return Standing(version, record.error or record.state)
