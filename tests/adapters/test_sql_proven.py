"""What was run on the base model is told from what wasn't, and histories are trimmed as they grow."""

from __future__ import annotations

import pytest

from adapters.sql_facts import facts_of, weights_of
from livery_adapters.registry import (
    AdapterRecord,
    AliasTarget,
    GenerationMismatch,
    NameTaken,
    NothingToRollBack,
    OwnedElsewhere,
    Registry,
)

ONE, TWO, THREE = facts_of("one"), facts_of("two"), facts_of("three")
FOREIGN = facts_of("foreign", base=weights_of("another model"))


def serving(record: AdapterRecord) -> str | None:
    return record.active.facts.digest if record.active else None


def history(registry: Registry, name: str) -> list[tuple[int, str]]:
    return [(version.number, version.state) for version in registry.versions(name)]


def test_only_a_version_that_some_name_has_run_is_proven(registry: Registry) -> None:
    registry.put("a", ONE, source="api", origin="", state="registered")
    assert registry.proven_facts(ONE.weights, 0, ONE.base_digest) is None
    registry.put("b", ONE, source="api", origin="")
    assert registry.proven_facts(ONE.weights, 0, ONE.base_digest) == ONE
    assert registry.proven_facts(ONE.weights, 0, FOREIGN.base_digest) is None


def test_a_version_never_run_replaces_none_that_was(registry: Registry) -> None:
    assert serving(registry.put("pirate", ONE, source="api", origin="", state="registered")) == ONE.digest
    assert serving(registry.put("pirate", TWO, source="api", origin="", state="registered")) == TWO.digest
    registry.mark_ready("pirate", TWO.digest)
    record = registry.put("pirate", THREE, source="api", origin="", state="registered")
    assert (serving(record), record.generation) == (TWO.digest, 3)
    assert history(registry, "pirate") == [(3, "registered"), (2, "ready"), (1, "registered")]
    assert serving(registry.activate("pirate", "3")) == THREE.digest


def test_going_back_passes_over_another_models_versions(registry: Registry) -> None:
    for facts in (ONE, FOREIGN, TWO):
        registry.put("pirate", facts, source="api", origin="")
    assert registry.rollback_target("pirate").facts == FOREIGN
    assert registry.rollback_target("pirate", ONE.base_digest).facts == ONE
    assert serving(registry.rollback("pirate", base_digest=ONE.base_digest)) == ONE.digest
    with pytest.raises(NothingToRollBack):
        registry.rollback("pirate", base_digest=ONE.base_digest)


def test_a_history_is_trimmed_as_it_grows_and_no_other_with_it(registry: Registry) -> None:
    for facts in (ONE, TWO, THREE):
        registry.put("corsair", facts, source="api", origin="")
        registry.put("pirate", facts, source="api", origin="", keep=2)
    assert history(registry, "pirate") == [(3, "ready"), (2, "ready")]
    assert history(registry, "corsair") == [(3, "ready"), (2, "ready"), (1, "ready")]


def test_a_put_that_would_be_refused_is_known_beforehand(registry: Registry) -> None:
    registry.check_put("pirate", "api", 0)
    record = registry.put("pirate", ONE, source="folder", origin="")
    registry.check_put("pirate", "folder", record.generation)
    with pytest.raises(GenerationMismatch):
        registry.check_put("pirate", "folder", 0)
    with pytest.raises(OwnedElsewhere):
        registry.check_put("pirate", "api")
    registry.set_alias("crew", [AliasTarget("pirate")], "none")
    with pytest.raises(NameTaken):
        registry.check_put("crew", "api")
    registry.retire("pirate")
    registry.check_put("pirate", "api", 0)


def test_the_failed_proof_of_a_version_nobody_keeps_is_nobodys_failure(registry: Registry) -> None:
    registry.put("pirate", ONE, source="api", origin="", state="registered")
    registry.retire("pirate")
    registry.fail("pirate", code="activation_failed", message="no room", source="", origin="")
    assert registry.find("pirate") is None
