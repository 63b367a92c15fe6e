"""Names, versions and leases: who is served what, and when a version is nobody's any more."""

from __future__ import annotations

import pytest

from adapters.versions import version
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import (
    RESERVED_VERBS,
    AdapterRegistry,
    AdapterVersion,
    UnknownAdapter,
    validate_name,
)

ONE, TWO, THREE = version("one"), version("two"), version("three")


class Shelf:
    """A registry and every digest it called idle, in order."""

    def __init__(self) -> None:
        self.idle: list[str] = []
        self.registry = AdapterRegistry(on_idle=lambda version: self.idle.append(version.digest), reserved={"base"})

    def serve(self, name: str, wanted: AdapterVersion) -> None:
        self.registry.add(name, wanted, "folder")
        self.registry.activate(name, wanted.digest)

    def state(self, name: str) -> str:
        return self.registry.get(name).state

    def served(self, name: str) -> str:
        with self.registry.lease(name) as lease:
            return lease.version.digest


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_a_staged_version_is_known_and_not_yet_served(shelf: Shelf) -> None:
    shelf.registry.add("pirate", ONE, "folder")
    assert shelf.state("pirate") == "loading"
    with pytest.raises(UnknownAdapter, match="'pirate'"):
        shelf.registry.lease("pirate")
    record = shelf.registry.activate("pirate", ONE.digest)
    assert record == shelf.registry.get("pirate")
    assert (record.state, record.version, record.source, record.leases) == ("active", ONE, "folder", 0)
    assert shelf.served("pirate") == ONE.digest


def test_a_lease_is_counted_until_it_is_released_and_only_once(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    first, second = shelf.registry.lease("pirate"), shelf.registry.lease("pirate")
    assert shelf.registry.get("pirate").leases == 2
    assert shelf.registry.uses(ONE.digest) == 3
    first.release()
    first.release()
    assert shelf.registry.get("pirate").leases == 1
    second.release()
    assert shelf.registry.uses(ONE.digest) == 1
    assert shelf.idle == []


def test_a_lease_ends_with_its_block_even_on_an_error(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    with pytest.raises(ZeroDivisionError), shelf.registry.lease("pirate"):
        raise ZeroDivisionError
    assert shelf.registry.get("pirate").leases == 0


def test_a_replacement_serves_new_requests_while_old_ones_finish(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    old = shelf.registry.lease("pirate")
    shelf.serve("pirate", TWO)
    assert old.version == ONE
    assert shelf.served("pirate") == TWO.digest
    assert shelf.registry.get("pirate").leases == 1
    assert shelf.idle == []
    old.release()
    assert shelf.idle == [ONE.digest]
    assert shelf.state("pirate") == "active"


def test_only_what_is_staged_can_be_activated(shelf: Shelf) -> None:
    for name in ("pirate", "nobody"):
        with pytest.raises(UnknownAdapter, match="is not staged"):
            shelf.registry.activate(name, ONE.digest)
        shelf.registry.add("pirate", TWO, "folder")
    shelf.registry.activate("pirate", TWO.digest)
    with pytest.raises(UnknownAdapter, match="is not staged"):
        shelf.registry.activate("pirate", TWO.digest)


def test_a_later_staged_version_takes_the_place_of_an_earlier(shelf: Shelf) -> None:
    shelf.registry.add("pirate", ONE, "folder")
    shelf.registry.add("pirate", TWO, "folder")
    assert shelf.idle == [ONE.digest]
    shelf.registry.add("pirate", TWO, "folder")
    assert shelf.idle == [ONE.digest]
    assert shelf.registry.uses(TWO.digest) == 1


def test_withdrawing_forgets_what_is_staged_and_nothing_else(shelf: Shelf) -> None:
    shelf.registry.add("pirate", ONE, "folder")
    shelf.registry.withdraw("pirate", TWO.digest)
    assert shelf.state("pirate") == "loading"
    shelf.registry.withdraw("pirate", ONE.digest)
    shelf.registry.withdraw("pirate", ONE.digest)
    assert shelf.idle == [ONE.digest]
    assert shelf.registry.records() == []
    shelf.serve("pirate", TWO)
    shelf.registry.withdraw("pirate", TWO.digest)
    assert shelf.served("pirate") == TWO.digest


def test_a_retired_name_drains_and_disappears_with_its_last_lease(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    lease = shelf.registry.lease("pirate")
    assert shelf.registry.retire("pirate")
    assert shelf.state("pirate") == "draining"
    with pytest.raises(UnknownAdapter):
        shelf.registry.lease("pirate")
    with pytest.raises(UnknownAdapter):
        shelf.registry.lease(f"pirate@{ONE.digest}")
    assert shelf.idle == []
    lease.release()
    assert shelf.idle == [ONE.digest]
    assert shelf.registry.records() == []
    assert not shelf.registry.retire("pirate")


def test_a_name_may_come_back_while_it_drains(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    lease = shelf.registry.lease("pirate")
    shelf.registry.retire("pirate")
    shelf.registry.add("pirate", TWO, "api")
    assert shelf.state("pirate") == "loading"
    shelf.registry.withdraw("pirate", TWO.digest)
    assert shelf.state("pirate") == "draining"
    shelf.serve("pirate", ONE)
    lease.release()
    assert shelf.state("pirate") == "active"
    assert shelf.idle == [TWO.digest]


def test_a_failed_replacement_is_recorded_beside_what_is_served(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    shelf.registry.fail("pirate", "tensor x holds NaN", "folder", code="nonfinite_weights")
    record = shelf.registry.get("pirate")
    assert (record.state, record.version) == ("active", ONE)
    assert (record.error, record.error_code) == ("tensor x holds NaN", "nonfinite_weights")
    shelf.serve("pirate", TWO)
    assert shelf.registry.get("pirate").error is None


@pytest.mark.parametrize(
    ("code", "state"),
    [("incomplete", "incomplete"), ("missing_weights", "incomplete"), ("bad_json", "failed"), ("failed", "failed")],
)
def test_a_name_that_never_worked_says_why(code: str, state: str, shelf: Shelf) -> None:
    shelf.registry.fail("pirate", "the reason", "folder", code=code)
    assert shelf.state("pirate") == state
    with pytest.raises(UnknownAdapter, match="no adapter named 'pirate': the reason") as caught:
        shelf.registry.lease("pirate")
    assert (caught.value.name, caught.value.reason) == ("pirate", "the reason")
    assert shelf.registry.retire("pirate")
    assert shelf.registry.records() == []


def test_a_renewed_name_has_its_source_and_no_error(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    shelf.registry.fail("pirate", "a bad one", "folder")
    shelf.registry.renew("pirate", "api")
    record = shelf.registry.get("pirate")
    assert (record.source, record.error, record.error_code) == ("api", None, None)
    with pytest.raises(UnknownAdapter):
        shelf.registry.renew("nobody", "api")


def test_a_version_of_two_names_is_idle_after_both(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    shelf.serve("corsair", ONE)
    assert shelf.registry.uses(ONE.digest) == 2
    shelf.registry.retire("pirate")
    assert shelf.idle == []
    shelf.registry.retire("corsair")
    assert shelf.idle == [ONE.digest]
    assert shelf.registry.uses(ONE.digest) == 0


def test_records_are_sorted_by_name(shelf: Shelf) -> None:
    for name in ("b", "c", "a"):
        shelf.serve(name, ONE)
    assert [record.name for record in shelf.registry.records()] == ["a", "b", "c"]


def test_the_registry_may_be_asked_while_it_reports_an_idle_version() -> None:
    seen: list[tuple[int, int]] = []
    registry = AdapterRegistry(
        on_idle=lambda version: seen.append((registry.uses(version.digest), len(registry.records())))
    )
    registry.add("pirate", ONE, "folder")
    registry.activate("pirate", ONE.digest)
    registry.retire("pirate")
    assert seen == [(0, 0)]


# -- pins ----------------------------------------------------------------------------------------------


def test_a_pin_finds_the_active_version_by_a_prefix_of_its_digest(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    for length in (8, 20, 64):
        with shelf.registry.lease(f"pirate@{ONE.digest[:length]}") as lease:
            assert (lease.name, lease.version) == ("pirate", ONE)
    assert shelf.registry.get("pirate").leases == 0


def test_a_pin_keeps_to_an_older_version_while_requests_still_use_it(shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    old = shelf.registry.lease("pirate")
    shelf.serve("pirate", TWO)
    with shelf.registry.lease(f"pirate@{ONE.digest[:12]}") as pinned:
        old.release()
        assert pinned.version == ONE
        assert shelf.idle == []
    assert shelf.idle == [ONE.digest]
    with pytest.raises(UnknownAdapter, match=f"the active one is {TWO.digest[:12]}"):
        shelf.registry.lease(f"pirate@{ONE.digest[:12]}")


@pytest.mark.parametrize("pin", ["", ONE.digest[:7], "f" * 8, ONE.digest + "0", ONE.digest[:8].upper() + "G", "@"])
def test_a_pin_of_nothing_known_is_unknown(pin: str, shelf: Shelf) -> None:
    shelf.serve("pirate", ONE)
    with pytest.raises(UnknownAdapter) as caught:
        shelf.registry.lease(f"pirate@{pin}")
    assert caught.value.reason
    assert shelf.registry.uses(ONE.digest) == 1


def test_a_pin_that_fits_two_versions_is_unknown(shelf: Shelf) -> None:
    shelf.serve("pirate", version("a", digest="ab" * 20 + "0" * 24))
    with shelf.registry.lease("pirate"):
        shelf.serve("pirate", version("b", digest="ab" * 20 + "1" * 24))
        with pytest.raises(UnknownAdapter):
            shelf.registry.lease("pirate@" + "ab" * 20)
        with shelf.registry.lease("pirate@" + "ab" * 20 + "0") as lease:
            assert lease.version.path.name == "a"


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "9", "Pirate-2.1_x", "team/pirate", "team:v1", "a" * 128, "load/er", "activated"]
)
def test_names_that_are_fine(name: str, shelf: Shelf) -> None:
    shelf.serve(name, ONE)
    assert shelf.served(name) == ONE.digest


@pytest.mark.parametrize(
    "name",
    ["", "-a", ".a", "/a", "a/", "a//b", "a/../b", "a/.", "a" * 129, "a b", "a@b", "a+b", "*", "ä", "a\n", "a\0"],
)
def test_names_that_are_refused(name: str, shelf: Shelf) -> None:
    with pytest.raises(AdapterRefused, match="rename it") as caught:
        shelf.registry.add(name, ONE, "folder")
    assert caught.value.code == "invalid_name"
    assert shelf.registry.records() == []
    assert shelf.registry.uses(ONE.digest) == 0


@pytest.mark.parametrize("verb", sorted(RESERVED_VERBS))
def test_a_name_never_ends_in_a_verb_of_the_management_routes(verb: str) -> None:
    for name in (verb, f"team/{verb}"):
        with pytest.raises(AdapterRefused, match=f"'{verb}' is reserved"):
            validate_name(name)
    validate_name(f"{verb}/pirate")


def test_the_base_model_keeps_its_name(shelf: Shelf) -> None:
    with pytest.raises(AdapterRefused, match="the base model has this name"):
        shelf.registry.add("base", ONE, "folder")
