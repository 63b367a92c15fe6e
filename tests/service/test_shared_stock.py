"""Two servers with one registry and one object store, each with a folder of its own."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.object_stores import environment, moto, s3
from api.live_server import BASE, MODULES
from api.peft_files import make_adapter
from livery import warming
from livery.engine.fake import FakeEngine
from livery.lease import Lease
from livery.refusals import AdapterNotFetched, AdapterUnusable
from livery.running.http_server import IO_THREADS
from livery.served import ServedAdapters
from livery_adapters import bringing
from livery_adapters.base_model import BaseModel
from livery_adapters.fetching import NetworkLimits
from livery_adapters.library import AdapterLibrary, Intake, from_directory
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import GenerationMismatch, Registry
from livery_adapters.shared_blobs import SharedBlobs
from livery_adapters.store import BlobStore

__all__ = ["environment", "moto", "s3"]  # fixtures
QUICK = NetworkLimits(connect_s=5, stall_s=20, total_s=60, retries=0, backoff_s=0.01)
DEAD = "http://127.0.0.1:9"


class Server:
    """What a server knows of adapters, over a fake engine."""

    def __init__(self, folder: Path, adapters: ServedAdapters, store: BlobStore, engine: FakeEngine) -> None:
        self.folder, self.adapters, self.store, self.engine = folder, adapters, store, engine

    @classmethod
    async def start(cls, folder: Path, name: str) -> Server:
        engine = FakeEngine(modules=MODULES)
        info = await engine.start()
        base = BaseModel(BASE, info.base_digest, info.shapes)
        store = BlobStore(folder / name, Limits(), SharedBlobs("s3://bucket/livery", QUICK))
        registry = Registry.open(folder / "livery.db", frozenset({BASE}))
        adapters = ServedAdapters(engine, info, base, registry, store, Limits())
        await adapters.start()
        return cls(folder, adapters, store, engine)

    async def add(self, name: str, seed: int, expected_generation: int | None = None) -> str:
        path = self.folder / f"made-{seed}"
        made = path if path.exists() else make_adapter(path, seed=seed)
        async with self.adapters.changing(name):
            intake = Intake("api", expected_generation=expected_generation)
            await self.adapters.library.add(name, from_directory(made, [made]), intake)
        return read_manifest(made).digest

    async def lease(self, name: str) -> Lease:
        lease = await self.adapters.lease(name)
        assert lease is not None
        return lease

    async def stop(self) -> None:
        await self.adapters.stop()
        self.adapters.registry.close()


@pytest.fixture
async def servers(tmp_path: Path, s3: Any) -> AsyncIterator[tuple[Server, Server]]:
    one, two = await Server.start(tmp_path, "one"), await Server.start(tmp_path, "two")
    yield one, two
    await one.stop()
    await two.stop()


async def test_what_one_takes_in_the_other_serves(servers: tuple[Server, Server]) -> None:
    one, two = servers
    digest = await one.add("pirate", 1)
    leases = await asyncio.gather(*(two.lease("pirate") for _ in range(8)))  # fetched once for all
    assert {lease.digest for lease in leases} == {digest}
    assert two.store.verify(digest)
    assert leases[0].ref.parts[0].path == str(two.store.path(digest))


async def test_every_way_to_a_version_brings_its_files(servers: tuple[Server, Server], tmp_path: Path) -> None:
    one, two = servers
    first, second = await one.add("pirate", 1), await one.add("corsair", 2)
    await one.add("pirate", 3)
    composed = await two.lease("0.5*pirate+0.5*corsair")
    assert all(Path(part.path).is_dir() for part in composed.ref.parts)
    async with two.adapters.changing("pirate"):
        await two.adapters.library.rollback("pirate")
    assert (await two.lease("pirate")).digest == first
    three = await Server.start(tmp_path, "three")
    await three.adapters.prefetch(await asyncio.to_thread(three.adapters.registry.get, "corsair"))
    await three.adapters.library.export(first, tmp_path / "out")
    assert set(three.engine.loaded) == {second}
    assert read_manifest(tmp_path / "out").digest == first
    await three.stop()


@pytest.mark.parametrize("shares", ["", "s3://bucket/other"])
async def test_nothing_is_added_where_the_servers_of_a_registry_do_not_look(
    servers: tuple[Server, Server], tmp_path: Path, shares: str
) -> None:
    """As a job does with a folder of its own: every server would say that the files are missing."""
    one, two = servers
    digest = await one.add("pirate", 1)
    library = two.adapters.library
    await asyncio.to_thread(library.registry.use_blob_store, "s3://bucket/livery")
    store = BlobStore(tmp_path / "job", Limits(), SharedBlobs(shares, QUICK) if shares else None)
    job = AdapterLibrary(library.registry, store, library.base, Limits())
    made = make_adapter(tmp_path / "other", seed=2)
    with pytest.raises(AdapterRefused, match="start with --blob-store s3://bucket/livery") as caught:
        await job.add("pirate", from_directory(made, [made]), Intake("api"))
    assert caught.value.code == "blobs_elsewhere"
    assert store.digests() == []
    assert len(library.registry.versions("pirate")) == 1
    assert (await two.lease("pirate")).digest == digest


async def test_while_the_object_store_is_dead_what_is_here_is_served(
    servers: tuple[Server, Server], environment: pytest.MonkeyPatch, s3: Any
) -> None:
    one, two = servers
    here, elsewhere = await one.add("pirate", 1), await two.add("corsair", 2)
    alive = s3.meta.endpoint_url
    environment.setenv("AWS_ENDPOINT_URL", DEAD)
    assert (await one.lease("pirate")).digest == here
    with pytest.raises(AdapterNotFetched):
        await one.lease("corsair")
    with pytest.raises(AdapterRefused) as caught:
        await one.add("sailor", 3)
    assert caught.value.code == "blobs_unavailable"
    assert await asyncio.to_thread(one.adapters.registry.find, "sailor") is None
    environment.setenv("AWS_ENDPOINT_URL", alive)
    assert (await one.lease("corsair")).digest == elsewhere
    await one.add("sailor", 3)


@pytest.mark.parametrize(("error", "why"), [(errno.ENOSPC, "no room for them"), (errno.EIO, "can't store them")])
async def test_a_disk_that_takes_nothing_is_no_fault_of_the_adapter(
    servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch, error: int, why: str
) -> None:
    one, two = servers
    digest = await one.add("pirate", 1)
    mkdir = Path.mkdir

    def fails(path: Path, *how: Any, **more: Any) -> None:
        if path.parent == two.store.root / "incoming":
            raise OSError(error, os.strerror(error))
        mkdir(path, *how, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", fails)
        with pytest.raises(AdapterNotFetched, match=why):
            await two.lease("pirate")
    assert (await two.lease("pirate")).digest == digest


async def test_a_pinned_adapter_that_cannot_be_fetched_is_once_it_can(
    servers: tuple[Server, Server], environment: pytest.MonkeyPatch, s3: Any
) -> None:
    environment.setattr(warming, "AGAIN_S", 0.01)
    one, two = servers
    digest = await one.add("pirate", 1)
    await asyncio.to_thread(one.adapters.registry.pin, "pirate", True)
    environment.setenv("AWS_ENDPOINT_URL", DEAD)
    two.adapters._forget_names(None)
    await two.adapters.settle()
    assert not two.engine.loaded
    environment.setenv("AWS_ENDPOINT_URL", s3.meta.endpoint_url)
    async with asyncio.timeout(60):  # nobody asks for it
        while set(two.engine.loaded) != {digest}:
            await asyncio.sleep(0.01)
    assert two.adapters.vitals.ended == []


async def test_what_nobody_uses_leaves_while_a_pinned_adapter_is_fetched(
    servers: tuple[Server, Server], environment: pytest.MonkeyPatch
) -> None:
    one, two = servers
    digest = await one.add("pirate", 1)
    await two.add("cook", 2)
    begun, go_on, bring = threading.Event(), threading.Event(), two.store.bring

    def slowly(wanted: str) -> bool:
        begun.set()
        assert go_on.wait(60)
        return bring(wanted)

    environment.setattr(two.store, "bring", slowly)
    await asyncio.to_thread(one.adapters.registry.pin, "pirate", True)
    two.adapters._forget_names(None)
    try:
        assert await asyncio.to_thread(begun.wait, 60)
        async with two.adapters.changing("cook"):
            await two.adapters.library.retire("cook")
        async with asyncio.timeout(60):
            while two.engine.loaded:
                await asyncio.sleep(0.01)
    finally:
        go_on.set()
    await two.adapters.settle()
    assert set(two.engine.loaded) == {digest}


async def test_while_the_object_store_hangs_names_are_looked_up_and_accounts_take_turns(
    servers: tuple[Server, Server], environment: pytest.MonkeyPatch
) -> None:
    _, two = servers
    digest = await two.add("cook", 1)
    begun: list[str] = []
    held = threading.Event()

    def hangs(wanted: str) -> bool:
        begun.append(wanted)
        return held.wait(60)

    environment.setattr(two.store, "bring", hangs)
    library, last = two.adapters.library, "f" * 64
    wanted = [asyncio.create_task(library.bring(f"{number:064x}", "acme")) for number in range(IO_THREADS + 1)]
    wanted.append(asyncio.create_task(library.bring(last, "globex")))
    try:
        async with asyncio.timeout(20):
            while len(begun) < bringing.FETCHES:
                await asyncio.sleep(0)
            assert (await two.lease("cook")).digest == digest
    finally:
        held.set()
    await asyncio.gather(*wanted)
    assert len(begun) == IO_THREADS + 2
    assert begun.index(last) < 2 * bringing.FETCHES, "the account with one to fetch waited for the one with many"


async def test_files_that_are_nowhere_are_the_adapters_own_trouble(servers: tuple[Server, Server], s3: Any) -> None:
    one, two = servers
    await one.add("pirate", 1)
    for entry in s3.list_objects_v2(Bucket="bucket")["Contents"]:
        s3.delete_object(Bucket="bucket", Key=entry["Key"])
    with pytest.raises(AdapterUnusable, match="add the adapter again"):
        await two.lease("pirate")
    assert await one.lease("pirate")


async def test_of_two_servers_that_change_a_name_at_once_one_does(servers: tuple[Server, Server]) -> None:
    one, two = servers
    await one.add("pirate", 1)
    generation = (await asyncio.to_thread(one.adapters.registry.get, "pirate")).generation
    results = await asyncio.gather(
        one.add("pirate", 2, generation), two.add("pirate", 3, generation), return_exceptions=True
    )
    won = [result for result in results if isinstance(result, str)]
    assert len(won) == 1
    assert sum(isinstance(result, GenerationMismatch) for result in results) == 1
    one.adapters._forget_names(None)
    two.adapters._forget_names(None)
    assert {(await server.lease("pirate")).digest for server in servers} == set(won)
