"""Tenants and keys in a database: what is kept, what is refused, what of a key is nowhere."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from livery.commands.tenants_reach import every_page
from livery.tenancy import Key, Limits, Tenant, TenantManagement, TenantStore, no_names
from livery.tenancy.checks import expiry
from livery.tenancy.errors import (
    InvalidTenancy,
    KeyOver,
    TenancyError,
    TenantExists,
    TenantInUse,
    UnknownKey,
    UnknownTenant,
)
from livery.tenancy.migrations import MIGRATIONS
from livery.tenancy.schema import metadata
from livery_adapters.registry import Registry, RegistryTooNew, RegistryUnreadable
from livery_adapters.registry.database import Database

KEY = re.compile(r"lv-([a-z2-7]{8})-[A-Za-z0-9_-]{43}")


def nothing(_: str) -> str | None:
    return None


def made(store: TenantStore, tenant: str, **asked: Any) -> tuple[Key, str]:
    key, text, _ = store.create_key(tenant, **asked, occupied=nothing)
    return key, text


def test_the_migrations_make_the_tables_of_the_code(store: TenantStore) -> None:
    with store.database.read() as connection:
        options = {"version_table": MIGRATIONS.version_table, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_the_operators_tenant_is_there_and_stays(store: TenantStore) -> None:
    (default,) = store.tenants()
    assert (default.name, default.weight, default.limits, default.disabled) == ("default", 1.0, Limits(), False)
    with pytest.raises(InvalidTenancy):
        store.delete_tenant("default", occupied=nothing)
    with pytest.raises(InvalidTenancy):
        store.update_tenant("default", disabled=True)
    assert store.update_tenant("default", weight=2.0).weight == 2.0


def test_a_tenant_is_made_changed_and_deleted(store: TenantStore) -> None:
    made_at = time.time()
    acme = store.create_tenant("acme", weight=2.5, limits={"n": 4, "tokens_per_minute": 1000}, occupied=nothing)
    assert acme == Tenant("acme", 2.5, Limits(n=4, tokens_per_minute=1000), acme.created)
    assert made_at <= acme.created <= time.time()
    assert store.tenant("acme") == acme
    with pytest.raises(TenantExists):
        store.create_tenant("acme", occupied=nothing)
    changed = store.update_tenant("acme", limits={"n": None, "versions": 3}, disabled=True)
    assert changed == Tenant("acme", 2.5, Limits(tokens_per_minute=1000, versions=3), acme.created, disabled=True)
    assert [tenant.name for tenant in store.tenants()] == ["acme", "default"]
    store.delete_tenant("acme", occupied=nothing)
    with pytest.raises(UnknownTenant):
        store.tenant("acme")


def test_a_tenant_never_takes_over_or_leaves_adapters(store: TenantStore) -> None:
    with pytest.raises(TenantInUse, match="acme/sql"):
        store.create_tenant("acme", occupied=lambda name: f"{name}/sql")
    with pytest.raises(TenantInUse, match="acme/sql"):
        store.create_key("acme", occupied=lambda name: f"{name}/sql")
    assert [tenant.name for tenant in store.tenants()] == ["default"]
    assert not store.keyed()
    store.create_tenant("acme", occupied=nothing)
    with pytest.raises(TenantInUse, match="acme/sql"):
        store.delete_tenant("acme", occupied=lambda name: f"{name}/sql")
    assert store.tenant("acme")


@pytest.mark.parametrize(
    "name", ["", "-acme", "Acme", "a" * 40, "a/b", "a b", "acme\n", "é", "a.b", "a_b", "\x00", "\ud800", "ⓐcme"]
)
def test_names_that_no_tenant_can_have(store: TenantStore, name: str) -> None:
    for act in (
        lambda: store.create_tenant(name, occupied=nothing),
        lambda: made(store, name),
        lambda: store.tenant(name),
        lambda: store.keys(name),
        lambda: store.delete_tenant(name, occupied=nothing),
    ):
        with pytest.raises(TenancyError):
            act()
    assert [tenant.name for tenant in store.tenants()] == ["default"]


@pytest.mark.parametrize(
    "asked",
    [
        {"role": "root"},
        {"role": "admin"},  # manages every tenant: nobody's but the operator's
        {"allow": ()},
        {"allow": ("own",) * 65},
        {"allow": ("../x",)},
        {"allow": ("",)},
        {"allow": ("a*b",)},
        {"label": "x" * 81},
        {"label": "two\nlines"},
        {"label": "\x1b[31m"},
        {"limits": {"speed": 1}},
        {"limits": {"n": -1}},
        {"limits": {"n": 2**53 + 1}},
        {"expires": 1.0},
        {"expires": math.inf},
        {"expires": math.nan},
    ],
    ids=str,
)
def test_keys_that_can_not_be(store: TenantStore, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidTenancy):
        made(store, "acme", **asked)
    assert store.keys() == ()
    assert [tenant.name for tenant in store.tenants()] == ["default"]


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, 1e-9, 1e9])
def test_weights_that_can_not_be(store: TenantStore, weight: float) -> None:
    with pytest.raises(InvalidTenancy):
        store.create_tenant("acme", weight=weight, occupied=nothing)
    with pytest.raises(InvalidTenancy):
        store.update_tenant("default", weight=weight)


def test_a_key_is_shown_once_and_only_its_digest_is_kept(store: TenantStore) -> None:
    assert not store.keyed()
    ends = time.time() + 60
    rights: dict[str, Any] = {"role": "owner", "allow": ("own", "sql-*"), "limits": {"n": 2}, "label": "CI"}
    key, text, new = store.create_key("acme", **rights, expires=ends, occupied=nothing)
    assert new  # its tenant was made for it
    assert not store.create_key("acme", occupied=nothing)[2]
    found = KEY.fullmatch(text)
    assert found is not None
    assert key.id == found[1]
    assert key.digest == hashlib.sha256(text.encode()).hexdigest()
    wanted = Key(key.id, key.digest, "acme", "owner", ("own", "sql-*"), Limits(n=2), "CI", key.created, ends)
    assert store.keys("acme")[0] == key == wanted
    assert store.keyed()
    with store.database.read() as connection:
        rows = [repr(row) for table in metadata.sorted_tables for row in connection.execute(table.select())]
    assert any(key.digest in row for row in rows)
    assert not any(text[12:] in row for row in rows)


def test_an_admins_key_is_the_operators(store: TenantStore) -> None:
    assert made(store, "default", role="admin")[0].role == "admin"


def test_keys_differ(store: TenantStore) -> None:
    texts = {made(store, "acme")[1] for _ in range(50)}
    assert len({text[3:11] for text in texts}) == len(texts) == 50


def test_a_key_is_revoked_for_good(store: TenantStore) -> None:
    key, _ = made(store, "acme")
    revoked = store.revoke_key(key.id)
    assert revoked.revoked is not None
    assert store.revoke_key(key.id) == revoked == store.keys()[0]
    with pytest.raises(KeyOver, match="revoked"):
        store.rotate_key(key.id)
    for unknown in ("aaaaaaaa", "", "\x00", "\ud800"):
        with pytest.raises(UnknownKey):
            store.revoke_key(unknown)


def test_a_rotated_key_has_the_rights_of_the_old_one(store: TenantStore) -> None:
    rights: dict[str, Any] = {"role": "owner", "allow": ("base",), "limits": {"n": 2}, "label": "CI"}
    old, _ = made(store, "acme", **rights, expires=time.time() + 1000)
    new, text = store.rotate_key(old.id, grace_s=60)
    assert KEY.fullmatch(text)
    assert (new.id, new.digest) != (old.id, old.digest)
    for field in ("tenant", "role", "allow", "limits", "label", "expires", "revoked"):
        assert getattr(new, field) == getattr(old, field)
    ended, kept = store.keys()
    assert kept == new
    assert ended.revoked is None
    assert ended.expires is not None
    assert time.time() < ended.expires <= time.time() + 60
    gone, _ = store.rotate_key(new.id)
    assert gone.id != new.id
    assert store.keys()[1].revoked is not None
    for grace in (-1, math.nan, 1e12):
        with pytest.raises(InvalidTenancy):
            store.rotate_key(gone.id, grace)


def test_grace_never_makes_a_key_last_longer(store: TenantStore) -> None:
    ends = time.time() + 5
    old, _ = made(store, "acme", expires=ends)
    store.rotate_key(old.id, grace_s=1000)
    assert store.keys()[0].expires == ends


def test_deleting_a_tenant_takes_its_keys_along_and_leaves_the_server_closed(store: TenantStore) -> None:
    made(store, "acme")
    store.create_tenant("other", occupied=nothing)
    store.delete_tenant("acme", occupied=nothing)
    assert store.keys() == ()
    assert store.keyed()


def test_every_change_is_seen_and_nothing_else(store: TenantStore) -> None:
    seen = store.snapshot(-1)
    assert seen is not None
    key, _ = made(store, "acme")
    other = store.create_tenant("other", occupied=nothing)
    for change in (
        lambda: made(store, "acme"),
        lambda: store.update_tenant("acme", weight=3.0),
        lambda: store.rotate_key(key.id, 5),
        lambda: store.revoke_key(key.id),
        lambda: store.delete_tenant("acme", occupied=nothing),
    ):
        before = store.snapshot(-1)
        assert before is not None
        assert store.snapshot(before.number) is None
        change()
        after = store.snapshot(before.number)
        assert after is not None
        assert after.number > before.number
    before = store.snapshot(-1)
    assert before is not None
    store.update_tenant("other")
    store.update_tenant("other", weight=other.weight)
    with pytest.raises(UnknownKey):
        store.revoke_key("aaaaaaaa")
    assert store.snapshot(before.number) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("12h", 43200), ("30d", 2592000), ("2w", 1209600), ("1970-01-02", 86400 - 1000.0)],
)
def test_times_are_spans_or_dates(text: str, seconds: float) -> None:
    assert expiry(text, 1000.0) == 1000.0 + seconds


@pytest.mark.parametrize("text", ["", "soon", "0d", "-3d", "1.5d", "30", "1970-01-01", "9999999d5", "30d" * 30, "٣d"])
def test_times_that_are_none_or_past(text: str) -> None:
    with pytest.raises(InvalidTenancy) as refused:
        expiry(text, 1000.0)
    assert refused.value.param == "expires"


@pytest.mark.parametrize("first", [Registry, TenantStore])
def test_tenants_and_adapters_may_share_a_database(new_url: Callable[[], str], first: type) -> None:
    url = new_url()
    opened = [cls.open(url) for cls in (first, *({Registry, TenantStore} - {first}))]
    for one in opened:
        one.close()
    store = TenantStore.open(url)
    made(store, "acme")
    store.close()
    Registry.open(url).close()


def test_a_newer_schema_or_something_else_is_not_touched(new_url: Callable[[], str]) -> None:
    url, other = new_url(), new_url()
    TenantStore.open(url).close()
    for place, statement in (
        (url, "update livery_tenants_schema set version_num = '9999'"),
        (other, "create table invoices (id integer)"),
    ):
        database = Database(place)
        with database.write() as connection:
            connection.exec_driver_sql(statement)
        database.close()
    with pytest.raises(RegistryTooNew, match="tenants "):
        TenantStore.open(url)
    with pytest.raises(RegistryUnreadable, match="something else"):
        TenantStore.open(other)


def test_keys_and_tenants_come_in_pages(store: TenantStore) -> None:
    for number in range(7):
        made(store, f"t{number % 2}")
        store.create_tenant(f"other-{number}", occupied=nothing)
    management = TenantManagement(store, no_names)
    for whose in (None, "t0"):
        keys, pages, after = store.keys(whose), list[str](), ""
        while True:
            page = asyncio.run(management.keys(whose, after, 2))
            pages += [key["id"] for key in page["data"]]
            assert len(page["data"]) <= 2 and page["has_more"] is (page["next_after"] is not None)
            if not page["has_more"]:
                break
            after = page["next_after"]
        assert pages == [key.id for key in keys]
    everything = asyncio.run(every_page(lambda after: management.tenants(after, 4)))
    assert [tenant["name"] for tenant in everything["data"]] == [tenant.name for tenant in store.tenants()]
    with pytest.raises(UnknownKey):
        store.keys(after="nobody77")
    with pytest.raises(InvalidTenancy):
        store.tenants(after="No Name\0")
