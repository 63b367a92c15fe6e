"""What each method of the registry does, on any database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.sql_facts import assert_consistent, facts_of, weights_of
from livery_adapters.identity import version_digest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import (
    AdapterRecord,
    AliasTarget,
    GenerationMismatch,
    Given,
    InvalidAlias,
    NamedVersion,
    NameTaken,
    NothingToRollBack,
    OwnedElsewhere,
    Registry,
    UnknownAdapter,
    UnknownAlias,
    UnknownVersion,
    writing,
)
from livery_adapters.registry import changes as change_log

ONE, TWO, THREE = facts_of("one"), facts_of("two"), facts_of("three")


def put(registry: Registry, name: str, label: str, source: str = "api", **options: object) -> AdapterRecord:
    return registry.put(name, facts_of(label), source=source, origin=f"{source}/{label}", **options)  # type: ignore[arg-type]


def active(record: AdapterRecord) -> NamedVersion:
    assert record.active is not None
    return record.active


def test_a_record_comes_back_as_it_was_put(registry: Registry) -> None:
    facts = facts_of("one", profile={"template": "é\U0001f3f4", "stop": ["\0", "\ud800"]}, approximate=16)
    made = registry.put("pirate", facts, source="hub", origin="hf://me/pirate@4f2c", pinned=True)
    read = registry.get("pirate")
    assert read == made
    version = active(read)
    assert version.facts == facts
    assert (version.name, version.number, version.state) == ("pirate", 1, "ready")
    assert (read.generation, read.state, read.source, read.origin) == (1, "ready", "hub", "hf://me/pirate@4f2c")
    assert (read.origin_digest, read.pinned, read.error) == (facts.weights, True, None)
    assert registry.proven_facts(facts.weights, 16, facts.base_digest) == facts
    assert registry.proven_facts(facts.weights, 16, weights_of("other")) is None
    assert registry.proven_facts(facts.weights, 0, facts.base_digest) is None
    assert registry.proven_facts(weights_of("other"), 16, facts.base_digest) is None


def test_the_same_version_again_is_the_same_generation(registry: Registry) -> None:
    put(registry, "pirate", "one")
    registry.fail("pirate", code="wrong_base", message="no", source="api", origin="")
    again = put(registry, "pirate", "one")
    assert (again.generation, again.error, again.error_code) == (1, None, None)
    assert [version.number for version in registry.versions("pirate")] == [1]


def test_versions_are_numbered_and_found_by_number_and_digest(registry: Registry) -> None:
    put(registry, "pirate", "one")
    put(registry, "pirate", "two")
    back = put(registry, "pirate", "one")
    assert (active(back).number, back.generation) == (1, 3)
    assert [version.facts for version in registry.versions("pirate")] == [TWO, ONE]
    assert registry.version("pirate", "2").facts == TWO
    assert registry.version("pirate", TWO.digest[:8].upper()).number == 2
    assert registry.version("pirate", TWO.digest).number == 2
    for wrong in ("3", "0", TWO.digest[:7], "f" * 8, "x" * 64, "", TWO.digest + "0", "%" * 8, "²"):
        with pytest.raises(UnknownVersion):
            registry.version("pirate", wrong)
    with pytest.raises(UnknownAdapter):
        registry.version("nobody", "1")
    with pytest.raises(UnknownAdapter):
        registry.versions("nobody")


def test_a_prefix_that_fits_two_versions_names_none(registry: Registry) -> None:
    for ending in "ab":
        facts = replace(ONE, digest="12345678" + ending * 56)
        registry.put("pirate", facts, source="api", origin="")
    with pytest.raises(UnknownVersion, match="more digits"):
        registry.version("pirate", "12345678")
    assert registry.version("pirate", "12345678a").number == 1


def test_a_version_may_wait_in_the_history(registry: Registry) -> None:
    waiting = put(registry, "pirate", "one", activate=False)
    assert (waiting.state, waiting.active, waiting.generation) == ("registered", None, 1)
    assert put(registry, "pirate", "one", activate=False).generation == 1
    assert active(registry.activate("pirate", "1")).facts == ONE
    assert put(registry, "pirate", "two", activate=False).active == registry.version("pirate", "1")


def test_a_registered_version_becomes_ready_once_it_was_run(registry: Registry) -> None:
    assert put(registry, "pirate", "one", state="registered").state == "registered"
    assert registry.mark_ready("pirate", ONE.digest).state == "ready"
    assert put(registry, "pirate", "one", state="registered").state == "ready"
    put(registry, "corsair", "two", state="registered")
    assert put(registry, "corsair", "two").state == "ready"
    with pytest.raises(UnknownVersion):
        registry.mark_ready("pirate", TWO.digest)
    with pytest.raises(UnknownAdapter):
        registry.mark_ready("nobody", TWO.digest)


def test_files_checked_against_another_base_bring_new_facts(registry: Registry) -> None:
    put(registry, "pirate", "one", source="folder")
    moved = registry.put(
        "pirate", facts_of("one", base="other"), source="folder", origin="folder/one", state="registered"
    )
    assert active(moved).facts == facts_of("one", base="other")
    assert (moved.state, moved.generation) == ("registered", 1)


@pytest.mark.parametrize("expected", [0, 2, 7])
def test_compare_and_set_refuses_any_other_generation(registry: Registry, expected: int) -> None:
    put(registry, "pirate", "one", expected_generation=0)
    for change in (
        lambda: put(registry, "pirate", "two", expected_generation=expected),
        lambda: registry.activate("pirate", "1", expected),
        lambda: registry.rollback("pirate", expected),
        lambda: registry.retire("pirate", expected),
        lambda: registry.set_profile("pirate", {"a": 1}, expected),
    ):
        with pytest.raises(GenerationMismatch) as refused:
            change()
        assert (refused.value.expected, refused.value.actual) == (expected, 1)
    assert registry.get("pirate").generation == 1
    assert put(registry, "pirate", "two", expected_generation=1).generation == 2


def test_a_name_that_is_not_there_is_generation_0(registry: Registry) -> None:
    with pytest.raises(GenerationMismatch, match="does not exist"):
        put(registry, "pirate", "one", expected_generation=1)
    assert registry.find("pirate") is None
    put(registry, "pirate", "one")
    registry.retire("pirate")
    again = put(registry, "pirate", "one", expected_generation=0)
    assert again.generation == 3  # never one that the name had before
    assert active(again).number == 2


def test_rollback_goes_back_step_by_step(registry: Registry) -> None:
    for label in ("one", "two", "three"):
        put(registry, "pirate", label)
    assert active(registry.rollback("pirate")).facts == TWO
    assert active(registry.rollback("pirate")).facts == ONE
    with pytest.raises(NothingToRollBack):
        registry.rollback("pirate")
    registry.activate("pirate", "3")
    assert active(registry.rollback("pirate")).facts == ONE
    with pytest.raises(UnknownAdapter):
        registry.rollback("nobody")
    assert_consistent(registry)


def test_rollback_passes_over_versions_that_are_gone(registry: Registry) -> None:
    for label in ("one", "two", "three"):
        put(registry, "pirate", label)
    registry.activate("pirate", "1")
    assert registry.trim(1) == [("pirate", TWO.digest)]
    assert active(registry.rollback("pirate")).facts == THREE
    with pytest.raises(NothingToRollBack):
        put(registry, "corsair", "one", activate=False)
        registry.rollback("corsair")


def test_what_was_active_is_remembered_a_while(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ACTIVATIONS_KEPT", 3)
    for label in ("one", "two", "three", "four", "five"):
        put(registry, "pirate", label)
    assert active(registry.rollback("pirate")).number == 4
    with pytest.raises(NothingToRollBack):
        registry.rollback("pirate")


def test_retiring_hides_the_name_and_frees_its_versions(registry: Registry) -> None:
    put(registry, "pirate", "one", pinned=True)
    put(registry, "corsair", "two")
    gone = registry.retire("pirate")
    assert (gone.state, gone.active, gone.pinned, gone.generation) == ("retired", None, False, 2)
    assert registry.find("pirate") is None
    assert [record.name for record in registry.page().records] == ["corsair"]
    assert registry.weights_in_use() == {TWO.weights}
    assert registry.get("pirate", include_retired=True) == gone
    assert [record.name for record in registry.page(include_retired=True).records] == ["corsair", "pirate"]
    assert registry.page(state="retired").records == (gone,)
    assert (registry.count(), registry.count(include_retired=True)) == (1, 2)
    for change in (registry.retire, registry.rollback, registry.get, registry.versions):
        with pytest.raises(UnknownAdapter):
            change("pirate")


def test_a_name_deleted_by_api_stays_so_until_the_folder_changes(registry: Registry) -> None:
    put(registry, "pirate", "one", source="folder")
    registry.retire("pirate")
    before = registry.changes(-1)[0]
    assert put(registry, "pirate", "one", source="folder").state == "retired"
    assert registry.find("pirate") is None
    assert registry.changes(before) == (before, ())
    put(registry, "pirate", "three")  # somebody else has the name in between
    registry.retire("pirate")
    assert put(registry, "pirate", "one", source="folder").state == "retired"
    assert put(registry, "pirate", "two", source="folder").state == "ready"


def test_a_rollback_of_what_the_folder_gave_stays_until_the_folder_changes(registry: Registry) -> None:
    put(registry, "pirate", "one", source="folder")
    put(registry, "pirate", "two", source="folder")
    registry.rollback("pirate")
    registry.fail("pirate", code="incomplete", message="being copied", source="folder", origin="")
    same = put(registry, "pirate", "two", source="folder")
    assert active(same).facts == ONE
    assert same.error is None
    assert active(put(registry, "pirate", "three", source="folder")).facts == THREE


@pytest.mark.parametrize(("owner", "other"), [("folder", "api"), ("hub", "folder")])
def test_the_folder_and_others_never_share_a_name(registry: Registry, owner: str, other: str) -> None:
    put(registry, "pirate", "one", source=owner)
    with pytest.raises(OwnedElsewhere) as refused:
        put(registry, "pirate", "two", source=other)
    assert refused.value.owner == owner
    registry.fail("pirate", code="bad_header", message="broken", source=other, origin="")
    assert registry.get("pirate").error is None
    registry.retire("pirate")
    assert put(registry, "pirate", "two", source=other).source == other


def test_sources_other_than_the_folder_share_names(registry: Registry) -> None:
    put(registry, "pirate", "one", source="api")
    assert put(registry, "pirate", "two", source="hub").source == "hub"


def test_a_failure_leaves_the_active_version_serving(registry: Registry) -> None:
    put(registry, "pirate", "one")
    registry.fail("pirate", code="nonfinite_weights", message="NaN \0 \ud800", source="", origin="")
    failed = registry.get("pirate")
    assert (failed.state, failed.error_code, failed.generation) == ("ready", "nonfinite_weights", 1)
    assert active(failed).facts == ONE
    assert registry.pin("pirate", True).error == failed.error
    registry.forget_failure("pirate")
    assert registry.get("pirate").error is None


def test_a_name_that_never_had_a_version_shows_its_failure(registry: Registry) -> None:
    registry.fail("pirate", code="incomplete", message="half there", source="folder", origin="pirate#1")
    failed = registry.get("pirate")
    assert (failed.state, failed.generation, failed.active, failed.source) == ("failed", 0, None, "folder")
    assert registry.page(state="failed").records == (failed,)
    assert registry.given("here") == {"pirate": Given("", claimed=False, listed=True)}
    assert put(registry, "pirate", "one", expected_generation=0).state == "ready"
    registry.fail("corsair", code="incomplete", message="half there", source="folder", origin="")
    registry.forget_failure("corsair")
    registry.forget_failure("nobody")
    assert registry.find("corsair", include_retired=True) is None


def test_a_failure_of_a_retired_name_shows_until_it_is_past(registry: Registry) -> None:
    put(registry, "pirate", "one", source="folder")
    registry.retire("pirate")
    registry.fail("pirate", code="incomplete", message="half there", source="folder", origin="")
    assert registry.get("pirate").state == "failed"
    put(registry, "pirate", "one", source="folder")
    assert registry.find("pirate") is None
    registry.fail("pirate", code="incomplete", message="half there", source="folder", origin="")
    assert registry.retire("pirate").state == "retired"


def test_what_a_folder_gave_last_is_told_to_its_follower(registry: Registry) -> None:
    put(registry, "pirate", "one", source="folder", follower="here")
    put(registry, "corsair", "one", source="folder", follower="here")
    put(registry, "elsewhere", "one", source="folder", follower="there")
    put(registry, "old", "one", source="folder")
    put(registry, "privateer", "one", source="api")
    registry.retire("corsair")
    registry.fail("broken", code="incomplete", message="half", source="folder", origin="broken#1", follower="here")
    assert registry.given("here") == {
        "pirate": Given("folder/one", claimed=True, listed=True),
        "corsair": Given("folder/one", claimed=True, listed=False),
        "broken": Given("", claimed=True, listed=True),
        "old": Given("folder/one", claimed=False, listed=True),
    }
    registry.put("pirate", ONE, source="folder", origin="folder/touched", follower="here")
    assert registry.given("here")["pirate"].origin == "folder/touched"
    registry.claim(["old", "elsewhere", "privateer", "nobody"], "here")
    assert registry.given("here")["old"].claimed
    assert registry.given("there").keys() == {"elsewhere"}


def test_of_two_folders_the_one_that_gave_a_name_last_has_it(registry: Registry) -> None:
    put(registry, "pirate", "one", source="folder", follower="here")
    again = put(registry, "pirate", "one", source="folder", follower="there")
    assert (again.generation, again.origin) == (1, "folder/one")
    assert not registry.withdraw("pirate", "here")
    registry.fail("pirate", code="incomplete", message="half there", source="folder", origin="", follower="here")
    assert registry.get("pirate").error is None
    registry.fail("pirate", code="incomplete", message="half there", source="folder", origin="", follower="there")
    assert registry.get("pirate").error == "half there"
    put(registry, "pirate", "two", source="folder", follower="here")
    assert active(registry.get("pirate")).facts == TWO
    assert not registry.withdraw("pirate", "there")
    assert registry.withdraw("pirate", "here")
    assert registry.find("pirate") is None


def test_what_was_withdrawn_counts_as_new_when_it_comes_back(registry: Registry) -> None:
    for name in ("pirate", "corsair", "privateer"):
        put(registry, name, "one", source="folder", follower="here")
    registry.retire("corsair")
    registry.retire("privateer")
    put(registry, "privateer", "two", source="api")
    names = ("pirate", "corsair", "privateer", "nobody")
    assert [registry.withdraw(name, "here") for name in names] == [True, False, False, False]
    assert registry.given("here") == {}
    assert active(registry.get("privateer")).facts == TWO
    for name in ("pirate", "corsair"):
        assert active(put(registry, name, "one", source="folder")).facts == ONE
    with pytest.raises(OwnedElsewhere):
        put(registry, "privateer", "one", source="folder")


def test_a_profile_makes_a_version_over_the_same_weights(registry: Registry) -> None:
    put(registry, "pirate", "one")
    made = registry.set_profile("pirate", {"temperature": 0.5})
    assert active(made).facts.digest == version_digest(ONE.weights, 0, {"temperature": 0.5})
    assert active(made).facts.profile == {"temperature": 0.5}
    assert (active(made).facts.weights, active(made).number, made.generation) == (ONE.weights, 2, 2)
    assert registry.set_profile("pirate", {"temperature": 0.5}).generation == 2
    back = registry.set_profile("pirate", {})
    assert (active(back).facts, active(back).number) == (ONE, 1)
    assert active(registry.rollback("pirate")).number == 2
    put(registry, "corsair", "one", activate=False)
    with pytest.raises(UnknownAdapter, match="no active version"):
        registry.set_profile("corsair", {})


def test_pinned_adapters_keep_their_history(registry: Registry) -> None:
    for label in ("one", "two", "three"):
        put(registry, "pirate", label)
        put(registry, "corsair", label)
    pinned = registry.pin("pirate", True)
    assert registry.pinned() == (pinned,)
    assert registry.trim(2) == [("corsair", ONE.digest)]
    assert registry.trim(0) == [("corsair", TWO.digest)]
    assert active(registry.get("corsair")).facts == THREE
    assert active(put(registry, "corsair", "one")).number == 4
    registry.pin("pirate", False)
    assert registry.pinned() == ()
    assert registry.trim(1) == [("corsair", THREE.digest), ("pirate", ONE.digest), ("pirate", TWO.digest)]
    with pytest.raises(ValueError, match="-1"):
        registry.trim(-1)
    with pytest.raises(UnknownAdapter):
        registry.pin("nobody", True)


def test_pages_follow_the_bytes_of_names(registry: Registry) -> None:
    names = ["B", "a", "a-b", "a.b", "a/b", "aB", "ab", "b", "z_9"]
    for name in names:
        put(registry, name, "one")
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = registry.page(after, 2)
        assert len(page.records) <= 2
        found += [record.name for record in page.records]
        after = page.next_after
    assert found == sorted(names)
    assert registry.page("b", 1).next_after is None
    for limit in (0, 1001):
        with pytest.raises(ValueError, match=str(limit)):
            registry.page("", limit)


def test_pages_filter(registry: Registry) -> None:
    put(registry, "sql_coder", "one", source="hub")
    put(registry, "sqlXcoder", "one", state="registered")
    put(registry, "pirate", "two")

    def names(**wanted: str) -> list[str]:
        assert registry.count(**wanted) == len(registry.page(**wanted).records)
        return [record.name for record in registry.page(**wanted).records]

    assert names(search="SQL_") == ["sql_coder"]
    assert names(search="coder") == ["sqlXcoder", "sql_coder"]
    assert names(search="%") == []
    assert names(source="hub") == ["sql_coder"]
    assert names(state="ready") == ["pirate", "sql_coder"]
    assert names(state="registered") == ["sqlXcoder"]
    assert names(state="draining") == []
    assert names(state="ready", source="api", search="i") == ["pirate"]


def test_names_serving_are_those_whose_active_version_has_the_files(registry: Registry) -> None:
    put(registry, "pirate", "one")
    put(registry, "pirate", "two")
    put(registry, "corsair", "two")
    registry.set_profile("corsair", {"a": 1})
    wanted = [weights_of(str(number)) for number in range(600)]
    assert registry.names_serving([*wanted, TWO.weights]) == ("corsair", "pirate")
    assert registry.weights_serving([*wanted, ONE.weights, TWO.weights]) == {TWO.weights: "corsair"}
    assert registry.names_serving([]) == ()
    assert registry.weights_in_use() == {ONE.weights, TWO.weights}


@pytest.mark.parametrize("name", ["", "a b", "a//b", "../a", "x" * 129, "pirate/versions", "a/unpin", "base", "é"])
def test_names_are_checked(registry: Registry, name: str) -> None:
    for change in (
        lambda: put(registry, name, "one"),
        lambda: registry.set_alias(name, [AliasTarget("base")], "none"),
    ):
        with pytest.raises(AdapterRefused) as refused:
            change()
        assert refused.value.code == "invalid_name"


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "'; DROP TABLE adapters; --", "x" * 100_000])
def test_any_text_may_be_asked_for(registry: Registry, name: str) -> None:
    assert registry.find(name) is None
    assert registry.find_alias(name) is None
    assert registry.page(name, search=name).records == ()
    for ask in (registry.get, registry.rollback, registry.versions, registry.retire):
        with pytest.raises(UnknownAdapter):
            ask(name)
    put(registry, "pirate", "one")
    with pytest.raises(UnknownVersion):
        registry.version("pirate", name)


# -- aliases -------------------------------------------------------------------------------------------


def test_an_alias_shares_its_requests_out(registry: Registry) -> None:
    put(registry, "pirate", "one")
    targets = (AliasTarget("pirate", 90), AliasTarget("base", 10.5))
    made = registry.set_alias("crew", targets, "user", 0)
    assert registry.alias("crew") == made == registry.find_alias("crew")
    assert (made.targets, made.sticky, made.generation) == (targets, "user", 1)
    assert registry.set_alias("crew", targets, "user") == made
    changed = registry.set_alias("crew", targets[::-1], "key", 1)
    assert (changed.targets, changed.sticky, changed.generation) == (targets[::-1], "key", 2)
    with pytest.raises(GenerationMismatch):
        registry.set_alias("crew", targets, "user", 1)
    with pytest.raises(GenerationMismatch):
        registry.delete_alias("crew", 1)
    assert registry.aliases() == (changed,)
    registry.delete_alias("crew", 2)
    assert registry.aliases() == ()
    for ask in (registry.alias, registry.delete_alias):
        with pytest.raises(UnknownAlias):
            ask("crew")


def test_aliases_and_adapters_share_one_namespace(registry: Registry) -> None:
    put(registry, "pirate", "one")
    with pytest.raises(NameTaken, match="adapter"):
        registry.set_alias("pirate", [AliasTarget("base")], "none")
    registry.set_alias("crew", [AliasTarget("pirate")], "none")
    with pytest.raises(NameTaken, match="alias"):
        put(registry, "crew", "one")
    registry.fail("crew", code="incomplete", message="half there", source="folder", origin="")
    assert registry.find("crew") is None
    registry.retire("pirate")
    assert registry.set_alias("pirate", [AliasTarget("base")], "none").generation == 1


@pytest.mark.parametrize(
    ("targets", "sticky", "reason"),
    [
        ([], "none", "targets"),
        ([AliasTarget("pirate", 0)], "none", "weight"),
        ([AliasTarget("pirate", -1)], "none", "weight"),
        ([AliasTarget("pirate", float("nan"))], "none", "weight"),
        ([AliasTarget("pirate", float("inf"))], "none", "weight"),
        ([AliasTarget("pirate"), AliasTarget("pirate")], "none", "twice"),
        ([AliasTarget("nobody")], "none", "add it first"),
        ([AliasTarget("crew")], "none", "alias"),
        ([AliasTarget("broken")], "none", "add it first"),
        ([AliasTarget("pirate")], "session", "sticky"),
    ],
)
def test_an_alias_needs_targets_that_can_serve(
    registry: Registry, targets: list[AliasTarget], sticky: str, reason: str
) -> None:
    put(registry, "pirate", "one")
    registry.fail("broken", code="incomplete", message="half there", source="folder", origin="")
    before = registry.set_alias("crew", [AliasTarget("pirate")], "none")
    with pytest.raises(InvalidAlias, match=reason):
        registry.set_alias("crew", targets, sticky, 1)  # type: ignore[arg-type]
    assert registry.alias("crew") == before


# -- changes -------------------------------------------------------------------------------------------


def test_readers_see_what_changed_since_they_looked(registry: Registry) -> None:
    assert registry.changes(0) == (0, ())
    assert registry.changes(-1) == (0, None)
    put(registry, "pirate", "one")
    assert registry.changes(0) == (1, ("pirate",))
    registry.set_alias("crew", [AliasTarget("pirate")], "none")
    registry.pin("pirate", True)
    seen, names = registry.changes(1)
    assert set(names or ()) == {"pirate", "crew"}
    assert registry.changes(seen) == (seen, ())
    put(registry, "pirate", "two")
    put(registry, "pirate", "three")
    registry.delete_alias("crew")
    assert set(registry.changes(seen)[1] or ()) == {"pirate", "crew"}
    assert registry.changes(seen + 100)[1] is None


def test_a_reader_that_fell_behind_is_told_so(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "KEPT", 3)
    for number in range(5):
        put(registry, f"pirate{number}", "one")
    assert registry.changes(0) == (5, None)
    assert registry.changes(2) == (5, None)
    assert registry.changes(3) == (5, ("pirate3", "pirate4"))
