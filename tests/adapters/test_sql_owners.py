"""Names belong to tenants: who finds what, what each keeps, what is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy import insert

from adapters.sql_facts import facts_of
from adapters.test_sql_scale import statements
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import (
    NO_QUOTA,
    AliasTarget,
    InvalidAlias,
    InvalidShare,
    NameTaken,
    OwnerChanged,
    Quota,
    QuotaExceeded,
    Reader,
    Registry,
    TenantNotEmpty,
    UnknownAdapter,
    UnknownAlias,
    Usage,
    View,
    keeping,
)
from livery_adapters.registry.rows import columns_of
from livery_adapters.registry.schema import adapters, versions

SIZE = facts_of("one").nbytes


def put(registry: Registry, name: str, label: str = "one", owner: str = "default", quota: Quota = NO_QUOTA) -> None:
    registry.put(name, facts_of(label), source="api", origin="", owner=owner, quota=quota)


def seen(registry: Registry, view: View | None, **options: object) -> list[str]:
    """The names of all pages, two at a time, which must agree with the count."""
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        page = registry.page(after, 2, view=view, **options)  # type: ignore[arg-type]
        names += [record.name for record in page.records]
        assert len(page.records) == 2 or page.next_after is None
        after = page.next_after
    assert len(names) == registry.count(view=view, **options)  # type: ignore[arg-type]
    return names


@pytest.fixture
def shop(registry: Registry) -> Registry:
    """Three tenants' names and the operator's."""
    for name in ("beard", "pirate", "zebra"):
        put(registry, name)
    for name in ("acme/parrot", "acme/pirate", "bob/parrot", "bob/x", "bob/secret"):
        put(registry, name, owner=name.partition("/")[0])
    registry.set_alias("crew", [AliasTarget("pirate")], "none")
    registry.set_alias("acme/birds", [AliasTarget("acme/parrot")], "none", owner="acme")
    registry.share("bob/x", "bob", "acme")
    return registry


def test_a_name_is_found_by_its_owner_and_by_those_it_is_shared_with(shop: Registry) -> None:
    assert shop.get("bob/x").owner == "bob"
    assert shop.get("bob/x", reader=Reader("owner", "bob")) == shop.get("bob/x")
    assert shop.find("bob/x", reader=Reader("shared", "acme")) == shop.get("bob/x")
    for reader in (Reader("owner", "acme"), Reader("owner", "default"), Reader("shared", "bob")):
        assert shop.find("bob/x", reader=reader) is None
        with pytest.raises(UnknownAdapter):
            shop.get("bob/x", reader=reader)
    assert shop.find_alias("acme/birds", Reader("owner", "acme")) == shop.alias("acme/birds")
    for reader in (Reader("owner", "bob"), Reader("owner", "default"), Reader("shared", "bob")):
        assert shop.find_alias("acme/birds", reader) is None


def test_a_tenant_sees_its_own_the_operators_and_what_is_shared_in_the_order_it_knows_them(shop: Registry) -> None:
    everything = ["acme/parrot", "acme/pirate", "beard", "bob/parrot", "bob/secret", "bob/x", "pirate", "zebra"]
    assert seen(shop, None) == everything
    # Its own pirate hides the operator's; that of others is at its full name.
    assert seen(shop, View("acme")) == ["beard", "bob/x", "acme/parrot", "acme/pirate", "zebra"]
    assert seen(shop, View("bob")) == ["beard", "bob/parrot", "pirate", "bob/secret", "bob/x", "zebra"]
    assert seen(shop, View("nobody")) == seen(shop, View("default")) == ["beard", "pirate", "zebra"]
    assert seen(shop, None, owner="bob") == ["bob/parrot", "bob/secret", "bob/x"]
    assert shop.page("bob/x", 1, view=View("acme")).next_after == "parrot"


def test_a_view_is_narrowed_by_what_a_key_may_ask(shop: Registry) -> None:
    narrow = View("acme", own=False, public=False, shared=False)
    assert seen(shop, narrow) == []
    assert seen(shop, replace(narrow, own=True)) == ["acme/parrot", "acme/pirate"]
    # What its own name hides stays hidden where the key may not ask its own.
    assert seen(shop, replace(narrow, public=True)) == ["beard", "zebra"]
    assert seen(shop, replace(narrow, shared=True)) == ["bob/x"]
    assert seen(shop, replace(narrow, names=("parrot", "bob/*", "pirate"))) == ["bob/x", "acme/parrot", "acme/pirate"]
    assert seen(shop, replace(narrow, names=("p_rrot", "acme/parrot", "bob", "%*", "Pi*"))) == []
    assert seen(shop, replace(narrow, names=("*",))) == seen(shop, View("acme"))
    assert seen(shop, View("default", own=False, public=False, shared=False, names=("z*",))) == ["zebra"]
    assert seen(shop, View("default", own=True, public=False, shared=False)) == ["beard", "pirate", "zebra"]


def test_pages_of_a_view_are_searched_as_the_tenant_knows_the_names(shop: Registry) -> None:
    assert seen(shop, View("acme"), search="acme") == []
    assert seen(shop, View("acme"), search="PIR") == ["acme/pirate"]
    assert seen(shop, View("acme"), search="bob") == ["bob/x"]
    shop.fail("acme/pirate", code="wrong_base", message="no", source="api", origin="")
    assert seen(shop, View("acme"), state="failed") == []
    assert seen(shop, View("acme"), state="ready") == seen(shop, View("acme"))
    with pytest.raises(ValueError, match="1 to 1000"):
        shop.page("", 0, view=View("acme"))


def test_a_name_of_its_own_without_a_version_and_an_alias_hide_the_operators_too(shop: Registry) -> None:
    shop.fail("acme/zebra", code="incomplete", message="half", source="folder", origin="", owner="acme")
    shop.set_alias("acme/beard", [AliasTarget("acme/parrot")], "none", owner="acme")
    assert seen(shop, View("acme")) == ["bob/x", "acme/parrot", "acme/pirate", "acme/zebra"]
    names = [card.name for card in shop.cards(View("acme"))]
    assert names == ["acme/beard", "acme/birds", "acme/parrot", "acme/pirate", "bob/x", "crew"]
    shop.retire("acme/pirate")
    shop.forget_failure("acme/zebra")
    shop.delete_alias("acme/beard")
    assert seen(shop, View("acme")) == ["beard", "bob/x", "acme/parrot", "pirate", "zebra"]


def test_cards_are_those_that_a_view_shows(shop: Registry) -> None:
    owners = {card.name: card.owner for card in shop.cards()}
    assert len(owners) == 10
    assert (owners["bob/x"], owners["acme/birds"], owners["crew"]) == ("bob", "acme", "default")
    assert [card.name for card in shop.cards(View("acme"))] == [
        *("acme/birds", "acme/parrot", "acme/pirate", "beard", "bob/x", "crew", "zebra"),
    ]
    assert [card.name for card in shop.cards(View("acme", public=False, shared=False))] == [
        *("acme/birds", "acme/parrot", "acme/pirate"),
    ]
    assert [alias.name for alias in shop.aliases("acme")] == ["acme/birds"]
    assert [alias.name for alias in shop.aliases()] == ["acme/birds", "crew"]


def test_an_owner_is_settled_with_the_name(registry: Registry) -> None:
    put(registry, "acme/parrot", owner="acme")
    with pytest.raises(NameTaken, match="tenant acme"):
        put(registry, "acme/parrot", "two")
    registry.put("acme/parrot", facts_of("two"), source="api", origin="", owner="acme")
    assert registry.get("acme/parrot").owner == "acme"
    registry.retire("acme/parrot")
    put(registry, "acme/parrot")
    assert registry.get("acme/parrot").owner == "default"
    registry.set_alias("acme/birds", [AliasTarget("base")], "none", owner="acme")
    with pytest.raises(NameTaken, match="tenant acme"):
        registry.set_alias("acme/birds", [AliasTarget("base")], "user")
    for name in ("parrot", "acme", "bob/parrot", "acme/", "acme//x", "acme/../x", "acme/.x", "acme/base", "acme/x/pin"):
        with pytest.raises(AdapterRefused) as refused:
            put(registry, name, owner="acme")
        assert refused.value.code == "invalid_name"
    with pytest.raises(AdapterRefused, match=r"^'base' can't .* base model"):
        put(registry, "acme/base", owner="acme")
    with pytest.raises(AdapterRefused, match="up to 123 letters"):
        put(registry, "acme/" + "x" * 124, owner="acme")


def test_aliases_lead_where_their_owner_may_go(shop: Registry) -> None:
    targets = [AliasTarget("acme/parrot"), AliasTarget("zebra", 2), AliasTarget("bob/x"), AliasTarget("base")]
    alias = shop.set_alias("acme/all", targets, "user", owner="acme")
    assert alias.targets == tuple(targets)
    for owner, name, target in (
        ("acme", "acme/y", "bob/secret"),
        ("acme", "acme/y", "nobody"),
        ("default", "y", "bob/x"),
    ):
        with pytest.raises(InvalidAlias, match="is no adapter"):
            shop.set_alias(name, [AliasTarget(target)], "user", owner=owner)


VERBS: dict[str, tuple[object, ...]] = {
    "activate": ("1",),
    "rollback": (),
    "rollback_target": (),
    "retire": (),
    "set_profile": ({"system": "Arr."},),
    "versions": (),
    "version": ("1",),
}


def test_verbs_know_an_owners_names_alone(shop: Registry) -> None:
    put(shop, "bob/x", "two", owner="bob")
    shop.set_alias("bob/crew", [AliasTarget("bob/x")], "none", owner="bob")
    before = shop.get("bob/x")
    for owner in ("acme", "default"):
        for verb, more in VERBS.items():
            with pytest.raises(UnknownAdapter):
                getattr(shop, verb)("bob/x", *more, owner=owner)
        with pytest.raises(UnknownAlias):
            shop.delete_alias("bob/crew", owner=owner)
    assert shop.get("bob/x") == before
    assert shop.find_alias("bob/crew") is not None
    for owner in ("bob", None):
        assert shop.activate("bob/x", "1", owner=owner).active is not None
        assert [version.number for version in shop.versions("bob/x", owner=owner)] == [2, 1]
        assert shop.version("bob/x", "2", owner=owner).number == 2


def test_a_name_whose_owner_changed_on_its_way_in_is_not_settled(new_url: Callable[[], str]) -> None:
    tenants = {"bob"}
    registry = Registry.open(
        new_url(), {"base"}, lambda name: first if (first := name.partition("/")[0]) in tenants else "default"
    )
    try:
        put(registry, "acme/x")
        put(registry, "bob/x", owner="bob")
        tenants ^= {"acme", "bob"}  # one is made and one deleted
        for name, owner in (("acme/y", "default"), ("bob/y", "bob")):
            with pytest.raises(OwnerChanged, match="by now"):
                put(registry, name, owner=owner)
            with pytest.raises(OwnerChanged):
                registry.set_alias(name, [AliasTarget("base")], "none", owner=owner)
            registry.fail(name, code="bad", message="bad", source="folder", origin="", owner=owner)
            assert (registry.find(name, include_retired=True), registry.find_alias(name)) == (None, None)
        put(registry, "acme/y", owner="acme")
        registry.fail("acme/y", code="bad", message="was tried", source="", origin="")  # of one that is there
        assert registry.get("acme/y").error == "was tried"
    finally:
        registry.close()


# -- shares --------------------------------------------------------------------------------------------


def test_a_share_ends_with_the_adapter_and_does_not_come_back(shop: Registry) -> None:
    seen_changes, _ = shop.changes(-1)
    assert shop.share("bob/x", "bob", "zoe") == ("acme", "zoe")
    assert shop.share("bob/x", "bob", "zoe") == ("acme", "zoe")
    assert shop.unshare("bob/x", "bob", "acme") == ("zoe",)
    assert shop.unshare("bob/x", "bob", "acme") == ("zoe",)
    assert shop.changes(seen_changes)[1] == ("bob/x",)
    assert shop.changes(seen_changes)[0] == seen_changes + 2
    put(shop, "bob/x", "two", owner="bob")  # another version is still shared
    assert shop.find("bob/x", reader=Reader("shared", "zoe")) is not None
    shop.retire("bob/x")
    assert shop.shared_with("bob/x") == ()
    put(shop, "bob/x", "two", owner="bob")
    assert shop.find("bob/x", reader=Reader("shared", "zoe")) is None


def test_only_owners_share_and_only_with_others(shop: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in (("acme", "bob/x"), ("bob", "bob/nothing"), ("acme", "pirate"), ("acme", "acme/birds")):
        for verb in (shop.share, shop.unshare):
            with pytest.raises(UnknownAdapter):
                verb(name, owner, "zoe")
    for owner, name, grantee in (("default", "pirate", "zoe"), ("bob", "bob/x", "bob"), ("bob", "bob/x", "default")):
        with pytest.raises(InvalidShare, match="anyway"):
            shop.share(name, owner, grantee)
    monkeypatch.setattr(keeping, "MAX_GRANTEES", 2)
    shop.share("bob/x", "bob", "zoe")
    with pytest.raises(InvalidShare, match="2 tenants"):
        shop.share("bob/x", "bob", "one-more")


def test_a_tenant_is_forgotten_when_it_has_nothing(shop: Registry) -> None:
    for tenant in ("acme", "bob"):
        with pytest.raises(TenantNotEmpty, match=f"{tenant}/"):
            shop.check_empty(tenant)
        with pytest.raises(TenantNotEmpty):
            shop.forget_tenant(tenant)
    shop.check_empty("ac")  # acme/parrot isn't below ac/
    shop.check_empty("pirate")
    shop.delete_alias("acme/birds")
    shop.retire("acme/parrot")
    with pytest.raises(TenantNotEmpty, match="acme/pirate"):
        shop.check_empty("acme")
    shop.retire("acme/pirate")
    shop.forget_tenant("acme")
    assert shop.shared_with("bob/x") == ()
    assert shop.find("acme/pirate", include_retired=True) is None


# -- what is kept --------------------------------------------------------------------------------------


def test_usage_counts_each_files_once(registry: Registry) -> None:
    assert registry.usage("acme") == Usage()
    put(registry, "acme/a", "one", "acme")
    put(registry, "acme/b", "one", "acme")
    registry.put("acme/b", facts_of("one", profile={"temperature": 0.5}), source="api", origin="", owner="acme")
    put(registry, "acme/b", "two", "acme")
    put(registry, "bob/a", "three", "bob")
    put(registry, "a", "three")
    registry.fail("acme/c", code="incomplete", message="half", source="folder", origin="", owner="acme")
    registry.set_alias("acme/d", [AliasTarget("acme/a")], "none", owner="acme")
    assert registry.usage("acme") == Usage(adapters=2, aliases=1, versions=4, nbytes=2 * SIZE)
    assert registry.usage("default") == registry.usage("bob") == Usage(adapters=1, versions=1, nbytes=SIZE)
    registry.retire("acme/b")
    assert registry.usage("acme") == Usage(adapters=1, aliases=1, versions=1, nbytes=SIZE)


@pytest.mark.parametrize(
    ("quota", "name"),
    [(Quota(adapters=2), "adapters"), (Quota(versions=2), "versions"), (Quota(nbytes=2 * SIZE), "adapter_bytes")],
)
def test_a_quota_stops_what_adds_to_it_and_nothing_else(registry: Registry, quota: Quota, name: str) -> None:
    put(registry, "acme/a", "one", "acme", quota)
    put(registry, "acme/b", "two", "acme", quota)
    with pytest.raises(QuotaExceeded, match=f"quota is {2 * SIZE if quota.nbytes else 2};") as refused:
        put(registry, "acme/c", "three", "acme", quota)
    assert refused.value.quota == name
    assert registry.find("acme/c") is None
    put(registry, "acme/b", "two", "acme", quota)  # it is there already
    put(registry, "acme/c", "three", "acme")  # the operator's decision
    put(registry, "bob/a", "one", "bob", quota)
    put(registry, "acme/c", "three", "acme", quota)
    registry.retire("acme/a")
    registry.retire("acme/b")
    put(registry, "acme/d", "two", "acme", quota)


def test_a_quota_of_versions_counts_what_is_left_after_trimming_and_new_profiles(registry: Registry) -> None:
    quota = Quota(versions=2)
    for label in ("one", "two", "three"):
        registry.put("acme/a", facts_of(label), source="api", origin="", owner="acme", quota=quota, keep=2)
    assert registry.usage("acme").versions == 2
    with pytest.raises(QuotaExceeded):
        registry.set_profile("acme/a", {"temperature": 0.5}, quota=quota)
    assert registry.usage("acme").versions == 2
    registry.set_profile("acme/a", {}, quota=quota)


def test_there_may_be_as_many_aliases_as_adapters(registry: Registry) -> None:
    quota = Quota(adapters=1)
    registry.set_alias("acme/a", [AliasTarget("base")], "none", owner="acme", quota=quota)
    with pytest.raises(QuotaExceeded, match="2 aliases"):
        registry.set_alias("acme/b", [AliasTarget("base")], "none", owner="acme", quota=quota)
    registry.set_alias("acme/a", [AliasTarget("base")], "user", owner="acme", quota=quota)


def test_a_full_quota_of_adapters_is_told_before_anything_is_sent(registry: Registry) -> None:
    quota = Quota(adapters=1)
    registry.check_put("acme/a", "api", owner="acme", quota=quota)
    put(registry, "acme/a", "one", "acme", quota)
    registry.check_put("acme/a", "api", owner="acme", quota=quota)
    with pytest.raises(QuotaExceeded):
        registry.check_put("acme/b", "api", owner="acme", quota=quota)


# -- many ----------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(new_url: Callable[[], str]) -> Iterator[Registry]:
    """Ten adapters of each of a thousand tenants."""
    registry = Registry.open(new_url())
    put(registry, "template")
    with registry.database.write() as connection:
        row = dict(connection.execute(adapters.select()).one()._mapping)
        owners = [f"t{number:03}" for number in range(1000)]
        names = [(owner, f"{owner}/adapter-{number}") for owner in owners for number in range(10)]
        connection.execute(insert(adapters), [row | {"name": name, "owner": owner} for owner, name in names])
        facts = columns_of(facts_of("template")) | {"number": 1, "added": 1.0, "state": "ready"}
        connection.execute(insert(versions), [facts | {"name": name} for _, name in names])
    yield registry
    registry.close()


def test_a_tenants_page_reads_its_own_stretches_of_the_table(crowd: Registry) -> None:
    crowd.share("t007/adapter-3", "t007", "t500")
    expected = [f"t500/adapter-{number}" for number in range(10)] + ["t007/adapter-3", "template"]
    with statements() as sent:
        page = crowd.page(limit=100, view=View("t500"))
    assert [record.name for record in page.records] == expected
    assert len(sent) == 4  # one for each stretch, and one for what is shown
    with statements() as sent:
        assert crowd.count(view=View("t500")) == 12
    assert len(sent) == 3
    with crowd.database.read() as connection:
        if connection.dialect.name == "sqlite":
            for statement in sent:
                plan = connection.exec_driver_sql(
                    f"EXPLAIN QUERY PLAN {statement}", tuple("x" for _ in range(statement.count("?")))
                )
                assert not [step.detail for step in plan if step.detail.startswith("SCAN adapters")], statement
