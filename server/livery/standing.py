"""What is remembered of a name between requests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from livery_adapters.registry import Alias, NamedVersion, Registry

REMEMBERED = ("task", "num_labels")  # of a coverage report, which may be long


@dataclass(frozen=True, slots=True)
class Standing:
    """What is remembered of a name: its active version, with no more of its report than requests need."""

    active: NamedVersion | None
    error: str


def look_up(registry: Registry, name: str) -> Standing | Alias | None:
    record = registry.find(name)
    if record is None:
        return registry.find_alias(name)
    version = record.active
    if version is not None:
        kept = {name: value for name, value in version.facts.coverage.items() if name in REMEMBERED}
        version = replace(version, facts=replace(version.facts, coverage=kept))
    return Standing(version, record.error or record.state)
