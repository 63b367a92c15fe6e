"""Versions to register, and what must hold of every registry's tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from sqlalchemy import insert, select

from livery_adapters.identity import version_digest
from livery_adapters.registry import Registry, VersionFacts
from livery_adapters.registry.rows import columns_of
from livery_adapters.registry.schema import activations, adapters, versions


def weights_of(label: str) -> str:
    return hashlib.sha256(label.encode()).hexdigest()


def facts_of(
    label: str, *, profile: Mapping[str, object] | None = None, base: str = "base", approximate: int = 0
) -> VersionFacts:
    weights = weights_of(label)
    return VersionFacts(
        digest=version_digest(weights, approximate, profile or {}),
        weights=weights,
        approximate=approximate,
        peft_type="LORA",
        base_digest=base,
        nbytes=3 << 32,
        coverage={"modules": [{"name": "q_proj", "effect": 0.25}], "base": base},
        profile=profile or {},
        parents=((weights_of("parent"), 0.5),),
        invocation=(1, 2),
        created=1.5,
    )


def fill(registry: Registry, count: int) -> list[str]:
    """Add so many adapters, one version each, by three statements; their names."""
    registry.put("template", facts_of("template"), source="api", origin="")
    with registry.database.write() as connection:
        names = [f"adapter-{number:05}" for number in range(count)]
        row = dict(connection.execute(adapters.select().where(adapters.c.name == "template")).one()._mapping)
        connection.execute(insert(adapters), [row | {"name": name} for name in names])
        facts = [facts_of(name) for name in names]
        common = {"number": 1, "added": 1.0, "state": "ready"}
        rows = [common | columns_of(one) | {"name": name} for name, one in zip(names, facts, strict=True)]
        connection.execute(insert(versions), rows)
        steps = [
            {"name": name, "position": 1, "digest": one["digest"], "at": 1.0}
            for name, one in zip(names, rows, strict=True)
        ]
        connection.execute(insert(activations), steps)
    registry.retire("template")
    return names


def assert_consistent(registry: Registry) -> None:
    """No operation was half done, whatever the names stand for."""
    with registry.database.read() as connection:
        rows = connection.execute(select(adapters)).all()
        kept = {(row.name, row.number): row for row in connection.execute(select(versions))}
        steps = {(row.name, row.position): row for row in connection.execute(select(activations))}
    for row in rows:
        numbers = [number for name, number in kept if name == row.name]
        assert row.last_number >= max(numbers, default=0)
        assert (row.active is None) == (row.activation is None)
        if row.retired:
            assert not numbers
            assert row.active is None
        if row.active is not None:
            assert kept[row.name, row.active].digest == steps[row.name, row.activation].digest
