"""What a tenant's limit on device memory costs that tenant, and nobody else."""

from __future__ import annotations

import pytest

from engine.city import City
from livery.engine.base import AdapterRef, Asker
from livery.engine.pages import PAGE_BYTES
from livery.engine.roster import MAX_SKIPS


def test_a_tenant_at_its_limit_gives_up_its_own_adapters() -> None:
    city = City(room=10)
    city.ask("b", 4, 1, adapter="bystander")
    sizes = {"x": 3, "y": 3, "bystander": 3}
    city.step()
    city.load(sizes)
    city.run_out(sizes)
    for adapter in ("x", "y", "x"):
        name = city.ask("a", 4, 2, adapter=adapter, room=4)
        city.step()
        city.load(sizes)
        assert set(city.residency.resident) == {"bystander", adapter}
        city.run_out(sizes)
        assert city.ended[name].finish_reason == "length"


def test_a_tenant_at_its_limit_waits_for_its_own_and_holds_up_nobody() -> None:
    city = City(room=10, running=4)
    sizes = {"x": 3, "y": 3, "other": 3}
    long = city.ask("a", 4, 150, adapter="x", room=4)
    city.step()
    city.load(sizes)
    city.step()
    second = city.ask("a", 4, 2, adapter="y", room=4)
    for _ in range(2 * MAX_SKIPS):
        name = city.ask("b", 4, 1, adapter="other")
        city.load(sizes)
        city.step()
        city.load(sizes)
        city.step()
        assert name in city.ended
        if long not in city.ended:
            assert "y" not in city.residency.resident
    city.run_out(sizes)
    assert city.ended[second].finish_reason == "length"


@pytest.mark.parametrize("host", [1, 10])
def test_what_waits_for_its_tenants_limit_keeps_no_others_adapter_in_the_store(host: int) -> None:
    """Nearly all of the device is free, and many of one tenant's versions wait for its own room."""
    city = City(room=50, running=8)
    city.residency.host_budget_bytes = host * PAGE_BYTES
    long = city.ask("a", 4, 300, adapter="hot", room=1)
    backlog = [city.ask("a", 4, 4, adapter=f"x{number}", room=1) for number in range(20)]
    for _ in range(2 * MAX_SKIPS):
        city.ask("b", 4, 4)  # so that b has had more than a, whose requests come first therefore
        city.step()
        city.load()
    assert long not in city.ended
    cold = city.ask("b", 4, 2, adapter="cold")
    for _ in range(5):
        city.step()
        city.load()
    assert cold in city.ended
    reads, held = city.residency.loads_from_store, city.residency.host_bytes
    assert held <= host * PAGE_BYTES
    city.run_out()
    assert {city.ended[name].finish_reason for name in (long, *backlog)} == {"length"}
    assert city.residency.loads_from_store - reads == len(backlog)


def test_what_is_read_ahead_counts_among_what_a_tenant_may_take() -> None:
    """Beyond that it stays in host memory until a request asks for it, for which the tenant's others go."""
    city = City(room=10)
    sizes = {"x": 3, "y": 3, "theirs": 3}
    for name, tenant, pages in (("x", "a", 4), ("y", "a", 4), ("theirs", "b", 4)):
        assert not city.residency.load(AdapterRef.of(name, name), Asker(tenant, limit=pages * PAGE_BYTES))
    city.load(sizes)
    city.load(sizes)
    assert set(city.residency.resident) == {"x", "theirs"}
    assert set(city.residency.in_host) == {"x", "y", "theirs"}
    asked = city.ask("a", 4, 1, adapter="y", room=4)
    city.run_out(sizes)
    assert city.ended[asked].finish_reason == "length"
    assert set(city.residency.resident) == {"y", "theirs"}


def test_an_adapter_beyond_a_tenants_limit_is_refused() -> None:
    city = City(room=10)
    large = city.ask("a", 4, 2, adapter="x", room=2)
    city.run_out({"x": 3})
    assert (city.ended[large].finish_reason, city.ended[large].code) == ("error", "resident_bytes_exceeded")
    assert str(3 * PAGE_BYTES) in (city.ended[large].error or "")


def test_a_tenants_limit_holds_where_an_adapter_is_there_for_another() -> None:
    city, sizes = City(room=10), {"x": 3, "own": 2}
    theirs = city.ask("b", 4, 100, adapter="x")
    city.step()
    city.load(sizes)
    large = city.ask("a", 4, 2, adapter="x", room=2)
    for _ in range(3):
        city.step()
        city.load(sizes)
    assert theirs not in city.ended
    assert (city.ended[large].finish_reason, city.ended[large].code) == ("error", "resident_bytes_exceeded")
    running = city.ask("a", 4, 20, adapter="own", room=4)
    for _ in range(3):
        city.step()
        city.load(sizes)
    waits = city.ask("a", 4, 2, adapter="x", room=4)
    while running not in city.ended:
        assert waits not in city.ended, "3 pages beside 2 of 4"
        city.step()
        city.load(sizes)
    for _ in range(4):
        city.step()
        city.load(sizes)
    assert city.ended[waits].finish_reason == "length" and theirs not in city.ended
    assert set(city.residency.resident) == {"x"}, "it gave up its own"
    city.run_out(sizes)
