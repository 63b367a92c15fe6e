"""Versions to register, and what must hold of every registry's tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from sqlalchemy import select

from livery_adapters.identity import version_digest
from livery_adapters.registry import Registry, VersionFacts
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
