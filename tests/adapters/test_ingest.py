"""Adapters on their way in and out at the same time: what concerns different ones never waits for the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.peft_made import make
from adapters.scene import Scene, digest_in
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import WEIGHTS_NAME


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters that differ."""
    folders = [tmp_path_factory.mktemp(f"adapter-{seed}") for seed in range(3)]
    for seed, folder in enumerate(folders):
        make(folder, seed=seed)
    return folders


async def until_loading(scene: Scene) -> None:
    """Let things happen until a load waits."""
    begun = asyncio.Event()
    scene.while_loading = lambda version: begun.set() if version.digest in scene.held else None
    await begun.wait()


async def test_a_slow_load_delays_no_other_load_and_no_departure(scene: Scene, pool: list[Path]) -> None:
    slow, quick, old = pool
    await scene.ingest.take("old", old, "api")
    gate = scene.held[digest_in(slow)] = asyncio.Event()
    async with asyncio.timeout(60):
        loading = asyncio.create_task(scene.ingest.take("slow", slow, "api"))
        await until_loading(scene)
        assert scene.standing("slow") == ("loading", None, None)
        await scene.ingest.take("quick", quick, "api")
        scene.registry.retire("old")
        await scene.ingest.settle()
        assert scene.loaded == [digest_in(quick)]
        assert await scene.ingest.prune() == []
        gate.set()
        await loading
    assert scene.names() == ["quick", "slow"]
    assert sorted(scene.store.digests()) == sorted(scene.loaded) == sorted([digest_in(quick), digest_in(slow)])


async def test_a_name_takes_one_version_after_the_other(scene: Scene, pool: list[Path]) -> None:
    first, second, _ = pool
    gate = scene.held[digest_in(first)] = asyncio.Event()
    async with asyncio.timeout(60):
        loading = asyncio.create_task(scene.ingest.take("pirate", first, "api"))
        await until_loading(scene)
        later = asyncio.create_task(scene.ingest.take("pirate", second, "api"))
        gate.set()
        assert (await loading).digest == digest_in(first)
        assert (await later).digest == digest_in(second)
        await scene.ingest.settle()
    assert scene.standing("pirate") == ("active", digest_in(second), None)
    assert scene.loaded == scene.store.digests() == [digest_in(second)]


async def test_a_version_wanted_again_while_it_loads_for_nobody_is_there(scene: Scene, pool: list[Path]) -> None:
    """Its first name is unloaded, so it becomes idle, while another name waits for the very same version."""
    digest = digest_in(pool[0])
    gate = scene.held[digest] = asyncio.Event()
    async with asyncio.timeout(60):
        loading = asyncio.create_task(scene.ingest.take("pirate", pool[0], "api"))
        await until_loading(scene)
        scene.registry.retire("pirate")
        other = asyncio.create_task(scene.ingest.take("corsair", pool[0], "api"))
        gate.set()
        with pytest.raises(AdapterRefused, match="unloaded while it was loading"):
            await loading
        await other
        await scene.ingest.settle()
    assert scene.names() == ["corsair"]
    assert scene.store.digests() == [digest]
    assert scene.loaded[-1] == digest
    assert digest_in(scene.store.path(digest)) == digest


async def test_files_that_changed_since_they_were_checked_are_not_kept(scene: Scene, tmp_path: Path) -> None:
    make(tmp_path / "pirate", seed=1)
    checked = await scene.ingest.check(tmp_path / "pirate")
    make(tmp_path / "pirate", seed=2)
    with pytest.raises(AdapterRefused, match="changed while they were read") as caught:
        await scene.ingest.take("pirate", tmp_path / "pirate", "api", checked=checked)
    assert caught.value.code == "incomplete"
    assert scene.store.digests() == []


async def test_a_stored_copy_that_rotted_is_replaced_by_the_next_one_taken(scene: Scene, pool: list[Path]) -> None:
    version = await scene.ingest.take("pirate", pool[0], "api")
    weights = version.path / WEIGHTS_NAME
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert (await scene.ingest.take("corsair", pool[0], "api")).digest == version.digest
    assert digest_in(version.path) == version.digest
