"""A tenant made or deleted while a name below its own is on its way in: one of the two comes out, never both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.sql_facts import facts_of
from livery.tenancy import TenancyError, TenantManagement, TenantStore, scope
from livery_adapters.registry import AliasTarget, OwnerChanged, Registry


class Watched(Registry):
    """Says when somebody is about to keep others from settling names."""

    near = threading.Event()

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.near.set()
        with super().alone():
            yield

    def forget_tenant(self, tenant: str) -> None:
        """There is nothing to forget here; looked at too early, it would keep the deletion waiting by itself."""


class House:
    """Both databases, as a server has them. `meanwhile` is called once, while a name is being settled."""

    def __init__(self, folder: Path) -> None:
        Watched.near.clear()
        self.store = TenantStore.open(folder / "tenants.db")
        self.registry = Watched.open(folder / "livery.db", {"base"}, self._owner_of)
        self.meanwhile: Callable[[], None] = lambda: None
        self.ended: list[str] = []
        self._thread = threading.Thread(target=lambda: None)

    def _owner_of(self, name: str) -> str:
        owner = scope.owner_of(name, self.store.is_tenant)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return owner

    @contextmanager
    def _names(self) -> Iterator[Registry]:
        yield self.registry

    @property
    def management(self) -> TenantManagement:
        return TenantManagement(self.store, self._names)

    def put(self, name: str, owner: str) -> None:
        self.registry.put(name, facts_of("one"), source="api", origin="", owner=owner)

    def tenants(self) -> list[str]:
        return [tenant.name for tenant in self.store.tenants()]

    def begin(self, change: Callable[[], object]) -> None:
        """Have a change of tenants run beside, until it is kept waiting or has ended."""

        def run() -> None:
            try:
                change()
                self.ended.append("")
            except TenancyError as error:
                self.ended.append(str(error))
            finally:
                Watched.near.set()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert Watched.near.wait(30)

    def end(self) -> str:
        """How that change ended: why it was refused, or ""."""
        self._thread.join(60)
        return self.ended[0]

    def close(self) -> None:
        self.store.close()
        self.registry.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


@pytest.mark.parametrize("how", ["tenant", "key"])
def test_no_tenant_is_made_above_a_name_that_is_just_settled(house: House, how: str) -> None:
    make = house.management
    change = (
        (lambda: asyncio.run(make.create_tenant("acme")))
        if how == "tenant"
        else (lambda: asyncio.run(make.create_key("acme", role="owner")))
    )
    house.meanwhile = lambda: house.begin(change)
    house.put("acme/late", "default")
    assert "acme/late" in house.end()
    assert (house.tenants(), house.store.keys()) == (["default"], ())
    asyncio.run(make.create_key("bob"))  # and others are made as ever
    assert house.tenants() == ["bob", "default"]


def test_no_tenant_is_deleted_above_a_name_that_is_just_settled(house: House) -> None:
    asyncio.run(house.management.create_tenant("acme"))
    Watched.near.clear()
    house.meanwhile = lambda: house.begin(lambda: asyncio.run(house.management.delete_tenant("acme")))
    house.put("acme/late", "acme")
    assert "acme/late" in house.end()
    assert house.tenants() == ["acme", "default"]


def test_what_was_on_its_way_as_the_operators_is_not_put_below_a_tenant_made_meanwhile(house: House) -> None:
    house.registry.check_put("acme/late", "api")
    asyncio.run(house.management.create_tenant("acme"))
    with pytest.raises(OwnerChanged, match=r"'acme/late' .* 'acme'"):
        house.put("acme/late", "default")
    with pytest.raises(OwnerChanged):
        house.registry.set_alias("acme/late", [AliasTarget("base")], "none")
    assert house.registry.find("acme/late") is None
    house.put("acme/late", "acme")
    assert house.registry.get("acme/late").owner == "acme"


def test_what_was_on_its_way_as_a_tenants_is_not_put_once_that_is_deleted(house: House) -> None:
    asyncio.run(house.management.create_tenant("acme"))
    house.registry.check_put("acme/late", "api", owner="acme")
    asyncio.run(house.management.delete_tenant("acme"))
    with pytest.raises(OwnerChanged):
        house.put("acme/late", "acme")
    asyncio.run(house.management.create_tenant("acme"))  # of another customer, who finds nothing there
    assert house.registry.find("acme/late") is None
