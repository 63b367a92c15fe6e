"""A tenant that is made while somebody puts a public name below its own: one of the two comes out, never both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.sql_facts import facts_of
from livery.tenancy import TenancyError, TenantManagement, TenantStore
from livery_adapters.registry import Registry


@pytest.mark.parametrize("how", ["tenant", "key"])
def test_a_name_put_after_the_look_undoes_the_tenant(tmp_path: Path, how: str) -> None:
    store, registry, looks = TenantStore.open(tmp_path / "tenants.db"), Registry.open(tmp_path / "livery.db"), 0

    @contextmanager
    def names() -> Iterator[Registry]:
        nonlocal looks
        yield registry
        looks += 1
        if looks == 1:  # nothing was there, and now there is
            registry.put("acme/late", facts_of("one"), source="api", origin="")

    management = TenantManagement(store, names)
    made = management.create_tenant("acme") if how == "tenant" else management.create_key("acme", role="owner")
    with pytest.raises(TenancyError, match="acme/late"):
        asyncio.run(made)
    assert [tenant.name for tenant in store.tenants()] == ["default"]
    assert store.keys() == ()
    assert registry.get("acme/late").owner == "default"
    asyncio.run(management.create_key("bob"))  # and others are made as ever
    assert [tenant.name for tenant in store.tenants()] == ["bob", "default"]
    store.close()
    registry.close()
