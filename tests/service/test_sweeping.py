"""What leaves the engine when it serves no more, and what that asks of the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.sql_facts import fill, weights_of
from livery.engine.base import AdapterPart, AdapterRef, Asker
from livery.refusals import AdapterUnusable
from livery_adapters.identity import converted_digest
from livery_adapters.registry import RegistryUnavailable
from service.stock import Stock, stocked

MANY, ENDS = 5000, 100


@pytest.fixture
async def stock(tmp_path: Path) -> AsyncIterator[Stock]:
    async with stocked(tmp_path) as stock:
        yield stock


@pytest.fixture
def asked(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests that the registry is asked for when something may have to leave."""
    seen: list[str] = []
    ask = stock.registry.weights_serving

    def counted(weights: Iterable[str]) -> Any:
        weights = list(weights)
        seen.extend(weights)
        return ask(weights)

    monkeypatch.setattr(stock.registry, "weights_serving", counted)
    return seen


async def retire(stock: Stock, name: str) -> None:
    async with stock.adapters.changing(name):
        await stock.adapters.library.retire(name)
    await stock.adapters.settle()


async def test_the_end_of_a_request_looks_at_its_own_adapter_alone(stock: Stock, asked: list[str]) -> None:
    await stock.adapters.stop()  # what follows changes would ask at moments of its own
    digest = await stock.add("pirate", 1)
    holds, names = stock.adapters._holds, fill(stock.registry, MANY)
    many = [weights_of(name) for name in names]
    for one in many:  # as if each had been asked once
        holds.keep(AdapterRef(one, (AdapterPart(one, ""),)), stored=False)
        holds.let_go(one)
    await stock.adapters.settle()
    assert len(holds.unused()) == MANY + 1
    assert set(asked) == {*many, digest}

    asked.clear()
    for _ in range(ENDS):
        (await stock.lease("pirate")).release()
        await stock.adapters.settle()
    assert 0 < len(asked) <= ENDS
    assert set(asked) == {digest}

    asked.clear()
    await retire(stock, names[42])
    assert asked == [many[42]]
    assert len(holds.unused()) == MANY

    asked.clear()
    stock.adapters._forget_names(None)  # any may have changed
    await stock.adapters.settle()
    assert len(asked) == MANY


async def test_files_stay_for_the_last_name_that_has_them(stock: Stock) -> None:
    digest = await stock.add("pirate", 1)
    await stock.add("buccaneer", 1)
    await stock.add("corsair", 1)
    (await stock.lease("pirate")).release()
    for name in ("pirate", "buccaneer"):
        await retire(stock, name)
        assert set(stock.engine.loaded) == {digest}, name
    await retire(stock, "corsair")
    assert not stock.engine.loaded
    assert not stock.adapters._holds.unused()


async def test_a_change_during_use_counts_when_the_use_ends(stock: Stock) -> None:
    digest = await stock.add("pirate", 1)
    await stock.adapters.settle()
    lease = await stock.lease("pirate")
    await retire(stock, "pirate")
    assert set(stock.engine.loaded) == {digest}
    lease.release()
    await stock.adapters.settle()
    assert not stock.engine.loaded


@pytest.mark.parametrize("pinned", [False, True])
async def test_what_nobody_asked_yet_leaves_with_its_name(tmp_path: Path, pinned: bool) -> None:
    """Read after a restart because somebody wanted it there, as two versions of the same files."""
    async with stocked(tmp_path) as before:
        digest = await before.add("pirate", 1)
        facts = before.registry.get("pirate").active
        assert facts is not None
        converted = converted_digest(digest, 4)
        before.registry.put("rough", replace(facts.facts, approximate=4, digest=converted), source="api", origin="")
    async with stocked(tmp_path) as stock:
        for name in ("pirate", "rough"):
            if pinned:
                stock.registry.pin(name, True)
            else:
                await stock.adapters.prefetch(stock.registry.get(name))
        stock.adapters._forget_names(None)
        await stock.adapters.settle()
        assert set(stock.engine.loaded) == {digest, converted}
        assert await stock.adapters.resident() == {"pirate", "rough"}
        for name in ("rough", "pirate"):
            await retire(stock, name)
        assert not stock.engine.loaded
        assert stock.store.digests() == []


async def test_files_are_held_while_the_engine_reads_them(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = await stock.add("pirate", 1)
    record, load = stock.registry.get("pirate"), stock.engine.load_adapter
    kept: list[bool] = []

    async def retired_meanwhile(adapter: AdapterRef, asker: Asker) -> Any:
        await retire(stock, "pirate")
        kept.append(stock.store.path(digest).is_dir())
        return await load(adapter, asker)

    monkeypatch.setattr(stock.engine, "load_adapter", retired_meanwhile)
    await stock.adapters.prefetch(record)
    assert kept == [True]
    await stock.adapters.settle()
    assert not stock.engine.loaded
    assert stock.store.digests() == []
    with pytest.raises(AdapterUnusable, match="its files are gone"):
        await stock.adapters.prefetch(record)


async def test_what_could_not_be_asked_is_asked_again(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    await stock.add("pirate", 1)
    await stock.add("corsair", 2)
    await stock.adapters.settle()
    await stock.adapters.stop()  # or it would be asked in between
    ask = stock.registry.weights_serving

    def away(weights: Iterable[str]) -> Any:
        raise RegistryUnavailable("it doesn't answer")

    monkeypatch.setattr(stock.registry, "weights_serving", away)
    with pytest.raises(RegistryUnavailable):
        await retire(stock, "pirate")
    assert len(stock.engine.loaded) == 2
    monkeypatch.setattr(stock.registry, "weights_serving", ask)
    await stock.adapters.settle()
    assert len(stock.engine.loaded) == 1
