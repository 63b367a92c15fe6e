"""A folder of adapters, followed as users change it: copied slowly, replaced, broken, removed."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from adapters.peft_made import edit_config, make
from adapters.scene import Scene, digest_in
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import UnknownAdapter
from livery_adapters.sources import FolderSource
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture(scope="module")
def pirate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pirate")
    make(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newer")
    make(folder, seed=2, r=2)
    return folder


async def test_every_adapter_found_is_served_under_its_folders_name(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    scene.put(newer, "corsair")
    (scene.root / "notes").mkdir()
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(pirate), None)
    assert scene.standing("corsair") == ("active", digest_in(newer), None)
    assert scene.names() == ["corsair", "pirate"]
    assert sorted(scene.loaded) == scene.store.digests() == sorted([digest_in(pirate), digest_in(newer)])
    with scene.registry.lease("pirate") as lease:
        assert read_manifest(lease.version.path).digest == digest_in(pirate)


async def test_a_half_copied_adapter_waits_until_it_is_whole(scene: Scene, pirate: Path) -> None:
    folder = scene.root / "pirate"
    folder.mkdir()
    shutil.copy(pirate / CONFIG_NAME, folder)
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("incomplete", None, "missing_weights")
    whole = (pirate / WEIGHTS_NAME).read_bytes()
    for part in (0, 7, 500, len(whole) - 1):
        (folder / WEIGHTS_NAME).write_bytes(whole[:part])
        await scene.folder.scan()
        assert scene.standing("pirate") == ("incomplete", None, "incomplete")
        assert scene.loaded == []
    (folder / WEIGHTS_NAME).write_bytes(whole)
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(pirate), None)


async def test_a_folder_that_moves_while_it_is_read_is_looked_at_again(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    scene.ingest.meanwhile = lambda: scene.put(newer, "pirate")
    assert not await scene.folder.scan()
    assert scene.names() == []
    scene.ingest.meanwhile = None
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(newer), None)


async def test_changed_files_are_a_new_version_and_the_old_one_goes(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    lease = scene.registry.lease("pirate")
    scene.put(newer, "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(newer), None)
    await scene.ingest.settle()
    assert digest_in(lease.version.path) == digest_in(pirate)
    lease.release()
    await scene.ingest.settle()
    assert scene.loaded == scene.store.digests() == [digest_in(newer)]


async def test_a_bad_replacement_leaves_the_old_version_serving(scene: Scene, pirate: Path) -> None:
    folder = scene.put(pirate, "pirate")
    await scene.folder.scan()
    edit_config(folder, use_dora=True)
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(pirate), "unsupported_field")
    assert "DoRA" in (scene.registry.get("pirate").error or "")
    scene.put(pirate, "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(pirate), None)
    assert scene.loaded == [digest_in(pirate)]


async def test_a_version_the_engine_cannot_apply_leaves_the_old_one_serving(
    scene: Scene, pirate: Path, newer: Path
) -> None:
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    scene.unable.add(digest_in(newer))
    scene.put(newer, "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(pirate), "activation_failed")
    assert scene.registry.get("pirate").error == "no room for it"


async def test_a_name_unloaded_while_it_loads_is_gone_and_costs_no_other(
    scene: Scene, pirate: Path, newer: Path
) -> None:
    scene.put(pirate, "pirate")
    scene.while_loading = lambda _: scene.registry.retire("pirate")
    assert await scene.folder.scan()
    await scene.ingest.settle()
    assert scene.names() == scene.loaded == scene.store.digests() == []
    with pytest.raises(AdapterRefused, match="'pirate' was unloaded while it was loading; load it again") as caught:
        await scene.ingest.take("pirate", scene.root / "pirate", "api")
    assert caught.value.code == "withdrawn"
    scene.put(newer, "corsair")
    assert await scene.folder.scan()
    assert scene.names() == ["corsair"]


async def test_a_removed_folder_retires_its_name(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    scene.put(newer, "corsair")
    await scene.folder.scan()
    shutil.rmtree(scene.root / "pirate")
    assert await scene.folder.scan()
    assert scene.names() == ["corsair"]
    with pytest.raises(UnknownAdapter):
        scene.registry.lease("pirate")
    await scene.ingest.settle()
    assert scene.loaded == scene.store.digests() == [digest_in(newer)]


async def test_a_removed_folder_takes_no_name_that_was_loaded_otherwise(
    scene: Scene, pirate: Path, newer: Path
) -> None:
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    await scene.ingest.take("pirate", newer, "api")
    shutil.rmtree(scene.root / "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(newer), None)


async def test_a_folder_out_of_sight_retires_nothing(scene: Scene, pirate: Path) -> None:
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    away = scene.root.rename(scene.root.with_name("away"))
    assert await scene.folder.scan()
    assert scene.standing("pirate")[0] == "active"
    away.rename(scene.root)
    assert await scene.folder.scan()
    assert scene.standing("pirate")[0] == "active"


@pytest.mark.parametrize("name", [".hidden", "pirate.tmp", "pirate.part", "pirate.partial", "pirate~"])
async def test_hidden_and_temporary_folders_are_ignored(name: str, scene: Scene, pirate: Path) -> None:
    folder = scene.put(pirate, name)
    assert await scene.folder.scan()
    assert scene.names() == []
    folder.rename(scene.root / "pirate")  # how careful people publish
    assert await scene.folder.scan()
    assert scene.standing("pirate")[0] == "active"


async def test_links_hurt_nobody_else(scene: Scene, pirate: Path) -> None:
    scene.put(pirate, "pirate")
    (scene.root / "loop").symlink_to("loop")
    (scene.root / "dangling").symlink_to("nowhere")
    (scene.root / "inside").mkdir()
    (scene.root / "inside" / CONFIG_NAME).symlink_to(CONFIG_NAME)
    (scene.root / "linked").symlink_to(pirate)
    assert await scene.folder.scan()
    assert scene.names() == ["inside", "linked", "pirate"]
    assert scene.standing("pirate")[0] == "active"
    for name in ("inside", "linked"):
        assert scene.standing(name) == ("failed", None, "not_regular")


async def test_a_folder_whose_name_cannot_be_served_says_so(scene: Scene, pirate: Path) -> None:
    scene.put(pirate, "my pirate")
    scene.put(pirate, os.fsdecode(b"\xff\n"))
    assert await scene.folder.scan()
    assert scene.names() == ["\\udcff\\n", "my pirate"]
    assert all(scene.standing(name) == ("failed", None, "invalid_name") for name in scene.names())
    assert scene.store.digests() == []


async def test_unchanged_folders_are_not_read_again(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    edit_config(scene.put(newer, "broken"), bias="all")
    await scene.folder.scan()
    assert sorted(scene.ingest.read) == ["broken", "pirate"]
    scene.put(newer, "corsair")
    assert await scene.folder.scan()
    assert await scene.folder.scan()
    assert sorted(scene.ingest.read) == ["broken", "corsair", "pirate"]
    os.utime(scene.root / "pirate" / WEIGHTS_NAME)
    await scene.folder.scan()
    assert scene.ingest.read[-1] == "pirate"
    assert scene.loaded.count(digest_in(pirate)) == 1


@pytest.mark.parametrize("retry_seconds", [0.0, 3600.0])
async def test_a_refusal_that_may_pass_is_tried_again_when_it_is_time(
    retry_seconds: float, scene: Scene, pirate: Path, newer: Path
) -> None:
    folder = FolderSource(scene.root, scene.ingest, scene.registry, quiet_seconds=0, retry_seconds=retry_seconds)
    scene.put(pirate, "pirate")
    edit_config(scene.put(newer, "broken"), bias="all")
    scene.unable.add(digest_in(pirate))
    assert await folder.scan()
    assert scene.standing("pirate") == ("failed", None, "activation_failed")
    scene.unable.clear()
    assert await folder.scan()
    served = ("active", digest_in(pirate), None)
    assert scene.standing("pirate") == (served if retry_seconds == 0 else ("failed", None, "activation_failed"))
    assert scene.ingest.read.count("pirate") == (2 if retry_seconds == 0 else 1)
    os.utime(scene.root / "pirate" / WEIGHTS_NAME)  # whoever touches the files need not wait
    assert await folder.scan()
    assert scene.standing("pirate") == served
    assert await folder.scan()
    assert scene.ingest.read.count("pirate") == (3 if retry_seconds == 0 else 2)
    assert scene.ingest.read.count("broken") == 1


async def test_a_full_disk_is_tried_again(scene: Scene, pirate: Path) -> None:
    folder = FolderSource(scene.root, scene.ingest, scene.registry, quiet_seconds=0, retry_seconds=0)
    scene.put(pirate, "pirate")
    incoming = scene.store.root / "incoming"
    incoming.rmdir()
    incoming.write_text("where copies should go")
    assert await folder.scan()
    assert scene.standing("pirate") == ("failed", None, "storage_failed")
    incoming.unlink()
    incoming.mkdir()
    assert await folder.scan()
    assert scene.standing("pirate") == ("active", digest_in(pirate), None)


async def test_a_missing_root_is_named(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"nowhere' is not a directory; create it"):
        FolderSource(tmp_path / "nowhere", scene.ingest, scene.registry)


async def test_watching_follows_arrivals_replacements_and_removals(scene: Scene, pirate: Path, newer: Path) -> None:
    async def until(loaded: list[str]) -> None:
        while scene.loaded != loaded:
            scene.changed.clear()
            await scene.changed.wait()

    watching = asyncio.create_task(scene.folder.watch())
    try:
        async with asyncio.timeout(60):
            scene.put(pirate, "pirate")
            await until([digest_in(pirate)])
            assert scene.standing("pirate") == ("active", digest_in(pirate), None)
            scene.put(newer, "pirate")
            await until([digest_in(newer)])
            assert scene.standing("pirate") == ("active", digest_in(newer), None)
            shutil.rmtree(scene.root / "pirate")
            await until([])
            assert scene.names() == []
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    assert watching.cancelled()
