"""From names to versions: what a request is bound to, and what becomes of versions that nothing uses any more."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from api.live_server import BASE, MODULES
from api.peft_files import make_adapter
from livery import served
from livery.engine.fake import FakeEngine
from livery.lease import Caller
from livery.refusals import WHY_FOR_OTHERS, AdapterNotReady, AdapterUnusable, InvalidParameter, UnknownModel
from livery.served import ServedAdapters
from livery.sweeping import COMPOSITIONS_KEPT
from livery.tenancy import Principal
from livery_adapters.base_model import BaseModel
from livery_adapters.library import AdapterLibrary, Intake, from_directory
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import AliasTarget, RegistryUnavailable
from livery_adapters.store import BlobStore, Hold, StoreBusy
from service.stock import API, Stock, stocked


@pytest.fixture
async def stock(tmp_path: Path) -> AsyncIterator[Stock]:
    async with stocked(tmp_path) as stock:
        yield stock


async def test_a_lease_keeps_its_version_whatever_becomes_of_the_name(stock: Stock) -> None:
    first = await stock.add("pirate", 1)
    lease = await stock.lease("pirate")
    second = await stock.add("pirate", 2)
    assert lease.digest == lease.ref.digest == first
    assert (await stock.lease("pirate")).digest == second
    async with stock.adapters.changing("pirate"):
        await stock.adapters.library.retire("pirate")
    await stock.adapters.settle()
    with pytest.raises(UnknownModel):
        await stock.adapters.lease("pirate")
    assert set(stock.engine.loaded) == {first, second}
    assert set(stock.store.digests()) == {first, second}
    lease.release()
    lease.release()
    await stock.adapters.settle()
    assert set(stock.engine.loaded) == set(stock.store.digests()) == {second}


async def test_a_replaced_version_leaves_the_engine_and_stays_on_disk_to_roll_back_to(stock: Stock) -> None:
    first = await stock.add("pirate", 1)
    second = await stock.add("pirate", 2)
    await stock.adapters.settle()
    assert set(stock.engine.loaded) == {second}
    assert set(stock.store.digests()) == {first, second}
    async with stock.adapters.changing("pirate"):
        await stock.adapters.library.rollback("pirate")
    assert (await stock.lease("pirate")).digest == first


async def test_a_version_is_pinned_by_number_or_digest(stock: Stock) -> None:
    first = await stock.add("pirate", 1)
    second = await stock.add("pirate", 2)
    assert (await stock.lease(f"pirate@{first[:8]}")).digest == first
    assert (await stock.lease("pirate@1")).digest == first
    assert (await stock.lease(f"pirate@{second[:12]}")).digest == second
    for unknown in ("pirate@9", "pirate@00000000", f"pirate@{first[:5]}x", "pirate@", "nobody@1"):
        with pytest.raises(UnknownModel):
            await stock.adapters.lease(unknown)


async def test_an_alias_shares_requests_out_by_weight_and_keeps_a_user_where_they_were(stock: Stock) -> None:
    await stock.add("stable", 1)
    await stock.add("canary", 2)
    targets = [AliasTarget("stable", 90), AliasTarget("canary", 10)]
    async with stock.adapters.changing("prod"):
        stock.registry.set_alias("prod", targets, "user")
    users = [f"user-{number}" for number in range(2000)]
    chosen = {user: (await stock.lease("prod", Caller(user=user))).name for user in users}
    assert 120 <= Counter(chosen.values())["canary"] <= 280  # 200 expected; six standard deviations
    for user in users[:100]:
        assert (await stock.lease("prod", Caller(user=user))).name == chosen[user]
    anonymous = Counter([(await stock.lease("prod")).name for _ in range(400)])
    assert set(anonymous) == {"stable", "canary"}


async def test_an_alias_may_lead_to_the_base(stock: Stock) -> None:
    await stock.add("pirate", 1)
    async with stock.adapters.changing("prod"):
        stock.registry.set_alias("prod", [AliasTarget(BASE)], "none")
    assert await stock.adapters.lease("prod") is None
    with pytest.raises(UnknownModel, match="is an alias"):
        await stock.adapters.lease("prod@1")


async def test_a_composition_holds_all_its_parts(stock: Stock) -> None:
    first, second = await stock.add("a", 1), await stock.add("b", 2)
    lease = await stock.lease("a+0.5*b")
    assert {part.digest: part.weight for part in lease.ref.parts} == {first: 1.0, second: 0.5}
    assert (await stock.lease("0.5*b + a")).ref.digest == lease.ref.digest
    assert (await stock.lease("a+0.25*b")).ref.digest != lease.ref.digest
    assert stock.adapters.under_way.of("b") == 3
    with pytest.raises(UnknownModel):
        await stock.adapters.lease("a+nobody")
    with pytest.raises(AdapterRefused, match=r".") as caught:
        await stock.adapters.lease("a+")
    assert caught.value.code == "bad_composition"


async def test_an_activated_adapter_joins_no_composition(stock: Stock) -> None:
    await stock.add("a", 1)
    path = make_adapter(stock.folder / "activated", seed=3, alora_invocation_tokens=[5, 6])
    async with stock.adapters.changing("b"):
        await stock.adapters.library.add("b", from_directory(path, [path]), API)
    with pytest.raises(InvalidParameter, match="activated adapter"):
        await stock.adapters.lease("a+b")
    lease = await stock.lease("b")
    assert lease.facts is not None
    assert lease.facts.invocation == (5, 6)


async def test_what_another_process_changes_is_seen_here(stock: Stock) -> None:
    first = await stock.add("pirate", 1)
    second = await stock.add("pirate", 2)
    assert (await stock.lease("pirate")).digest == second
    other = stock.elsewhere()
    other.rollback("pirate")
    other.close()
    async with asyncio.timeout(20):
        while (await stock.lease("pirate")).digest != first:
            await asyncio.sleep(0)


async def test_a_change_that_the_database_does_not_take_leaves_the_name_as_it_was(stock: Stock) -> None:
    digest = await stock.add("pirate", 1)
    assert (await stock.lease("pirate")).digest == digest
    with closing(sqlite3.connect(stock.folder / "livery.db", isolation_level=None)) as database:
        database.execute("ALTER TABLE adapters RENAME TO elsewhere")
        with pytest.raises(RegistryUnavailable):
            async with stock.adapters.changing("pirate"):
                await asyncio.to_thread(stock.registry.retire, "pirate")
        assert (await stock.lease("pirate")).digest == digest
        database.execute("ALTER TABLE elsewhere RENAME TO adapters")
    async with stock.adapters.changing("pirate"):
        await asyncio.to_thread(stock.registry.retire, "pirate")
    with pytest.raises(UnknownModel):
        await stock.lease("pirate")


async def test_a_version_registered_without_a_model_is_proven_by_its_first_request(stock: Stock) -> None:
    unproven = AdapterLibrary(stock.registry, stock.store, stock.base, Limits())
    good, bad = stock.made(1), stock.made(2)
    async with stock.adapters.changing("pirate"):
        record = await unproven.add("pirate", from_directory(good, [good]), API)
        await unproven.add("broken", from_directory(bad, [bad]), API)
    assert record.state == "registered"
    leases = await asyncio.gather(*(stock.lease("pirate") for _ in range(5)))
    assert {lease.digest for lease in leases} == {read_manifest(good).digest}
    assert stock.registry.get("pirate").state == "ready"
    stock.engine.behaviour.fail_canary.add(read_manifest(bad).digest)
    with pytest.raises(AdapterUnusable, match="first run"):
        await stock.adapters.lease("broken")
    assert stock.registry.get("broken").error_code == "canary_failed"


async def test_a_bad_first_run_is_a_refusal_and_leaves_nothing(stock: Stock) -> None:
    stock.engine.behaviour.fail_canary.add(read_manifest(stock.made(1)).digest)
    with pytest.raises(AdapterRefused, match="first run") as caught:
        await stock.add("pirate", 1)
    assert caught.value.code == "canary_failed"
    await stock.adapters.settle()
    assert stock.engine.loaded == {}
    assert stock.store.digests() == []
    assert stock.registry.find("pirate") is None


async def test_versions_for_another_base_are_named_as_such(stock: Stock) -> None:
    foreign = BaseModel("other", "0" * 64, stock.base.shapes)
    path = stock.made(1)
    async with stock.adapters.changing("pirate"):
        await AdapterLibrary(stock.registry, stock.store, foreign, Limits()).add(
            "pirate", from_directory(path, [path]), API
        )
    with pytest.raises(AdapterUnusable, match="another base model"):
        await stock.adapters.lease("pirate")
    await stock.add("pirate", 1)
    assert (await stock.lease("pirate")).digest == read_manifest(path).digest


async def test_a_pinned_adapter_is_kept_in_the_engine_whichever_version_is_active(stock: Stock) -> None:
    first = await stock.add("pirate", 1, Intake("api", pinned=True))
    await stock.adapters.settle()
    assert stock.engine.kept == (first,)
    second = await stock.add("pirate", 2)
    await stock.adapters.settle()
    assert stock.engine.kept == (second,)
    async with stock.adapters.changing("pirate"):
        stock.registry.pin("pirate", False)
    await stock.adapters.settle()
    assert stock.engine.kept == ()


async def test_pinned_adapters_are_loaded_at_start_and_no_others(stock: Stock) -> None:
    await stock.add("pirate", 1, Intake("api", pinned=True))
    await stock.add("corsair", 2)
    engine = FakeEngine(modules=MODULES)
    info = await engine.start()
    restarted = ServedAdapters(engine, info, stock.base, stock.registry, stock.store, Limits())
    await restarted.start()
    await restarted.settle()
    assert set(engine.loaded) == {read_manifest(stock.made(1)).digest}
    await restarted.stop()


async def test_a_sum_that_amounts_to_one_adapter_is_that_adapter(stock: Stock) -> None:
    first = await stock.add("a", 1)
    whole = await stock.lease("0.5*a+0.5*a")
    assert (whole.ref.digest, [part.weight for part in whole.ref.parts]) == (first, [1.0])
    half = await stock.lease("0.5*a")
    assert half.ref.digest != first
    for nothing in ("0*a", "a+-1*a"):
        with pytest.raises(InvalidParameter, match="come to nothing"):
            await stock.adapters.lease(nothing)


async def test_a_sum_is_counted_by_its_adapters_however_it_is_written(stock: Stock) -> None:
    first, second = await stock.add("a", 1), await stock.add("b", 2)
    written = ["a+b", "b+a", "1*a + 0.001*b", "2*b+-1*a+a", f"a@{first[:9]}+b@{second}", f"a@{first[:10]}+3*b"]
    (both,) = {(await stock.lease(name)).counted for name in written}
    assert both[0] == "a+b" and both[1] not in (first, second)
    alone = {(await stock.lease(name)).counted for name in ("a", "1*a", "0.5*a", "0.5*a+0.25*a", f"2*a@{first[:12]}")}
    assert alone == {("a", (await stock.lease("a")).facts.digest)}
    await stock.add("b", 3)
    name, version = (await stock.lease("a+b")).counted
    assert name == both[0] and version != both[1], "versions are told apart, as those of one adapter are"
    assert (await stock.lease(f"a+b@{second[:8]}")).counted == both


async def test_compositions_nobody_uses_are_bounded(stock: Stock) -> None:
    await stock.add("a", 1)
    for number in range(1, 200):
        (await stock.lease(f"0.{number:03d}*a")).release()
    await stock.adapters.settle()
    assert len(stock.adapters._holds.unused()) <= COMPOSITIONS_KEPT + 1


async def test_a_deleted_target_leaves_its_share_to_the_others(stock: Stock) -> None:
    await stock.add("stable", 1)
    await stock.add("canary", 2)
    targets = [AliasTarget("stable", 50), AliasTarget("canary", 50)]
    async with stock.adapters.changing("prod"):
        stock.registry.set_alias("prod", targets, "user")
    users = [Caller(user=f"user-{number}") for number in range(100)]
    before = {user: (await stock.lease("prod", user)).name for user in users}
    async with stock.adapters.changing("canary"):
        await stock.adapters.library.retire("canary")
    assert {(await stock.lease("prod", user)).name for user in users} == {"stable"}
    assert set(before.values()) == {"stable", "canary"}
    async with stock.adapters.changing("stable"):
        await stock.adapters.library.retire("stable")
    with pytest.raises(UnknownModel, match="alias, and none of its adapters"):
        await stock.adapters.lease("prod")


async def test_a_failed_proof_is_not_tried_again_by_every_request(stock: Stock) -> None:
    unproven = AdapterLibrary(stock.registry, stock.store, stock.base, Limits())
    path = stock.made(1)
    async with stock.adapters.changing("broken"):
        await unproven.add("broken", from_directory(path, [path]), API)
    digest = read_manifest(path).digest
    stock.engine.behaviour.refuse_adapters[digest] = "this engine can't"
    stranger = Caller(None, Principal("zeta", "user", "k1"))
    for _ in range(2):  # it is found out by the first one's request
        with pytest.raises(AdapterUnusable, match=f"'broken' can't be served: {WHY_FOR_OTHERS}$"):
            await stock.adapters.lease("broken", stranger)
    for _ in range(5):
        with pytest.raises(AdapterUnusable, match="this engine can't"):
            await stock.adapters.lease("broken")
    generation = stock.registry.get("broken").updated
    with pytest.raises(AdapterUnusable):
        await stock.adapters.lease("broken")
    assert stock.registry.get("broken").updated == generation, "each request wrote to the registry"


async def test_files_leased_here_outlive_a_deletion_elsewhere(stock: Stock) -> None:
    first = await stock.add("pirate", 1)
    lease = await stock.lease("pirate")
    other = stock.elsewhere()
    elsewhere = AdapterLibrary(other, BlobStore(stock.folder / "blobs"), stock.base, Limits())
    await elsewhere.retire("pirate")
    await elsewhere.collect_garbage()
    assert stock.store.path(first).is_dir()
    lease.release()
    await elsewhere.collect_garbage()
    assert not stock.store.path(first).is_dir()
    with pytest.raises(UnknownModel):  # remembered here, and gone: it is looked up again
        await stock.adapters.lease("pirate")
    other.close()


@pytest.mark.parametrize("asked", ["pirate", "pirate+0.5*cook"])
async def test_what_another_process_replaced_just_now_is_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """Its files are gone already, and this process has not yet looked what changed."""
    monkeypatch.setattr(served, "POLL_S", 3600.0)
    async with stocked(tmp_path) as stock:
        await stock.add("cook", 3)
        first = await stock.add("pirate", 1)
        (await stock.lease(asked)).release()
        await stock.adapters.settle()
        with closing(stock.elsewhere()) as other:
            elsewhere = AdapterLibrary(other, BlobStore(tmp_path / "blobs"), stock.base, Limits())
            second = stock.made(2)
            await elsewhere.retire("pirate")
            await elsewhere.add("pirate", from_directory(second, [second]), API)
            await elsewhere.collect_garbage()
        assert not stock.store.path(first).is_dir()
        lease = await stock.lease(asked)
        assert lease.ref.parts[0].digest == read_manifest(second).digest


@pytest.mark.parametrize("asked", ["pirate", "pirate+0.5*cook"])
async def test_a_version_that_is_lost_again_is_to_be_asked_for_later(
    stock: Stock, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    await stock.add("cook", 3)
    digests = [await stock.add("pirate", seed) for seed in (2, 1)]
    hold, tried = stock.store.hold, []

    def replaced(digest: str) -> Hold:
        """While a server wants its files, the version that a name stands for is deleted, as its successor is there."""
        if digest in digests:
            tried.append(digest)
            with closing(stock.elsewhere()) as other:
                other.activate("pirate", digests[(len(tried) + 1) % 2])
            shutil.rmtree(stock.store.path(digest))
        return hold(digest)

    monkeypatch.setattr(stock.adapters._holds, "_files", replaced)
    with pytest.raises(AdapterNotReady):
        await stock.adapters.lease(asked)
    assert tried == [digests[1], digests[0]]


@pytest.mark.parametrize("asked", ["pirate", "pirate+0.5*cook"])
async def test_an_adapter_whose_files_are_gone_for_good_is_named(stock: Stock, asked: str) -> None:
    await stock.add("cook", 3)
    shutil.rmtree(stock.store.path(await stock.add("pirate", 1)))
    with pytest.raises(AdapterUnusable, match="'pirate' can't be served: its files are gone"):
        await stock.adapters.lease(asked)


async def test_sweeping_goes_on_after_the_store_was_busy(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    await stock.add("pirate", 1)
    with stock.store.incoming() as incoming:
        incoming.copy(stock.made(2))
        incoming.seal()
        incoming.publish()  # from here to the end no garbage may be collected
        monkeypatch.setattr(stock.store, "collect_garbage", partial(stock.store.collect_garbage, timeout_s=0))
        async with stock.adapters.changing("pirate"):
            await stock.adapters.library.retire("pirate")
        with pytest.raises(StoreBusy):
            await stock.adapters.settle()
    async with asyncio.timeout(20):
        while stock.store.digests():
            await asyncio.sleep(0)
