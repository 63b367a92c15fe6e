"""A folder of adapters, followed as users change it: copied slowly, replaced, broken, removed."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters.peft_made import edit_config
from adapters.scene import Scene, digest_in
from livery_adapters.library import Intake, from_directory
from livery_adapters.prover import Candidate
from livery_adapters.sources import FolderSource
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME


async def test_every_adapter_found_is_served_under_its_folders_name(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    scene.put(newer, "corsair")
    (scene.root / "notes").mkdir()
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)
    assert scene.standing("corsair") == ("ready", digest_in(newer), None)
    assert scene.names() == ["corsair", "pirate"]
    assert sorted(scene.prover.proven) == scene.store.digests() == sorted([digest_in(pirate), digest_in(newer)])


async def test_a_half_copied_adapter_waits_until_it_is_whole(scene: Scene, pirate: Path) -> None:
    folder = scene.root / "pirate"
    folder.mkdir()
    shutil.copy(pirate / CONFIG_NAME, folder)
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("failed", None, "missing_weights")
    whole = (pirate / WEIGHTS_NAME).read_bytes()
    for part in (0, 7, 500, len(whole) - 1):
        (folder / WEIGHTS_NAME).write_bytes(whole[:part])
        await scene.folder.scan()
        assert scene.standing("pirate") == ("failed", None, "incomplete")
        assert scene.prover.proven == []
    (folder / WEIGHTS_NAME).write_bytes(whole)
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)


async def test_a_bad_replacement_leaves_the_old_version_serving(scene: Scene, pirate: Path) -> None:
    folder = scene.put(pirate, "pirate")
    await scene.folder.scan()
    edit_config(folder, layer_replication=[[0, 1]])
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), "unsupported_field")
    assert "layer_replication" in (scene.registry.get("pirate").error or "")
    scene.put(pirate, "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)
    assert scene.prover.proven == [digest_in(pirate)]


async def test_a_version_the_engine_cannot_apply_leaves_the_old_one_serving(
    scene: Scene, pirate: Path, newer: Path
) -> None:
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    scene.prover.unable.add(digest_in(newer))
    scene.put(newer, "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), "activation_failed")
    assert scene.registry.get("pirate").error == "no room for it"


async def test_a_removed_folder_retires_its_name(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    scene.put(newer, "corsair")
    await scene.folder.scan()
    shutil.rmtree(scene.root / "pirate")
    assert await scene.folder.scan()
    assert scene.names() == ["corsair"]
    assert await scene.kept() == [digest_in(newer)]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("retired_first", [False, True], ids=["served", "deleted"])
async def test_files_that_come_back_are_served_again(
    restarts: bool, retired_first: bool, scene: Scene, pirate: Path
) -> None:
    """Moved away and back, so that they look as ever; also where the name was deleted by the API in between."""

    async def look() -> None:
        if restarts:
            scene.folder = scene.source()
            await scene.folder.start()
        assert await scene.folder.scan()

    folder = scene.put(pirate, "pirate")
    scene.put(pirate, "other")
    for _ in range(2):
        await look()
        assert scene.standing("pirate") == ("ready", digest_in(pirate), None)
        if retired_first:
            await scene.library.retire("pirate")
            await look()
        away = folder.rename(scene.root.with_name("away"))
        await look()
        assert scene.names() == ["other"]
        away.rename(folder)
    await look()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)


async def test_a_folder_out_of_sight_retires_nothing(scene: Scene, pirate: Path) -> None:
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    away = scene.root.rename(scene.root.with_name("away"))
    assert await scene.folder.scan()
    assert scene.standing("pirate")[0] == "ready"
    away.rename(scene.root)
    assert await scene.folder.scan()
    assert scene.standing("pirate")[0] == "ready"


@pytest.mark.parametrize("name", [".hidden", "pirate.tmp", "pirate.part", "pirate.partial", "pirate~"])
async def test_hidden_and_temporary_folders_are_ignored(name: str, scene: Scene, pirate: Path) -> None:
    folder = scene.put(pirate, name)
    assert await scene.folder.scan()
    assert scene.names() == []
    folder.rename(scene.root / "pirate")  # how careful people publish
    assert await scene.folder.scan()
    assert scene.standing("pirate")[0] == "ready"


async def test_a_folder_whose_name_cannot_be_served_says_so(scene: Scene, pirate: Path) -> None:
    scene.put(pirate, "my pirate")
    scene.put(pirate, os.fsdecode(b"\xff\n"))
    assert await scene.folder.scan()
    assert scene.names() == ["\\udcff\\n", "my pirate"]
    assert all(scene.standing(name) == ("failed", None, "invalid_name") for name in scene.names())
    assert scene.store.digests() == []


async def test_a_full_disk_is_tried_again(scene: Scene, pirate: Path) -> None:
    folder = scene.source(retry_seconds=0)
    scene.put(pirate, "pirate")
    incoming = scene.store.root / "incoming"
    incoming.rmdir()
    incoming.write_text("where copies should go")
    assert await folder.scan()
    assert scene.standing("pirate") == ("failed", None, "storage_failed")
    incoming.unlink()
    incoming.mkdir()
    assert await folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)


async def test_a_missing_root_is_named(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"nowhere' is not a directory; create it"):
        FolderSource(tmp_path / "nowhere", scene.library, scene.changing, follower="here")


async def test_a_folder_that_moves_while_it_is_read_is_looked_at_again(scene: Scene, pirate: Path, newer: Path) -> None:
    folder = scene.put(pirate, "pirate")
    moved = False

    @asynccontextmanager
    async def changing(_name: str, _owner: str) -> AsyncIterator[None]:
        nonlocal moved
        if not moved:
            moved = True
            shutil.copytree(newer, folder, dirs_exist_ok=True)
        yield

    source = FolderSource(scene.root, scene.library, changing, follower="here", quiet_seconds=0)
    assert not await source.scan()
    assert scene.names() == scene.store.digests() == []
    assert await source.scan()
    assert scene.standing("pirate") == ("ready", digest_in(newer), None)


async def test_changed_files_are_a_new_version_of_the_same_name(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    scene.put(newer, "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(newer), None)
    assert [version.number for version in scene.registry.versions("pirate")] == [2, 1]


async def test_a_name_is_the_folders_or_somebody_elses(scene: Scene, pirate: Path, newer: Path) -> None:
    await scene.library.add("pirate", from_directory(newer, [newer]), Intake("api"))
    folder = scene.put(pirate, "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(newer), None)
    shutil.rmtree(folder)
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(newer), None)


async def test_a_name_that_somebody_else_gives_up_is_the_folders(scene: Scene, pirate: Path, newer: Path) -> None:
    await scene.library.add("pirate", from_directory(newer, [newer]), Intake("api"))
    folder = scene.source(retry_seconds=0)
    scene.put(pirate, "pirate")
    assert await folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(newer), None)
    await scene.library.retire("pirate")
    assert await folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)


async def test_what_nobody_expects_of_one_adapter_keeps_no_other_one_out(
    scene: Scene, pirate: Path, newer: Path
) -> None:
    def surprises(candidate: Candidate) -> None:
        if candidate.digest == digest_in(newer):
            raise ZeroDivisionError

    folder = scene.source(retry_seconds=0)
    scene.prover.while_proving = surprises
    scene.put(newer, "a-first")
    scene.put(pirate, "pirate")
    scene.put(newer, "z-last")
    assert await folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)
    assert scene.standing("a-first") == scene.standing("z-last") == ("failed", None, "unexpected")
    scene.prover.while_proving = lambda _: None
    assert await folder.scan()
    assert scene.standing("a-first") == scene.standing("z-last") == ("ready", digest_in(newer), None)


async def test_what_was_deleted_stays_so_until_the_folder_changes(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    await scene.library.retire("pirate")
    os.utime(scene.root / "pirate" / WEIGHTS_NAME)
    assert await scene.folder.scan()
    assert scene.names() == []
    scene.put(newer, "pirate")
    assert await scene.folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(newer), None)


async def test_a_restart_reads_only_what_changed_meanwhile(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "kept")
    scene.put(pirate, "changed")
    scene.put(pirate, "removed")
    await scene.folder.scan()
    scene.put(newer, "changed")
    shutil.rmtree(scene.root / "removed")
    scene.changes.clear()
    restarted = scene.source()
    await restarted.start()
    assert await restarted.scan()
    assert sorted(scene.changes) == ["changed", "removed"]
    assert scene.names() == ["changed", "kept"]
    assert scene.standing("changed")[1] == digest_in(newer)


async def test_links_lead_to_adapters_below_the_folder_only(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    (scene.root / "loop").symlink_to("loop")
    (scene.root / "dangling").symlink_to("nowhere")
    (scene.root / "inside").mkdir()
    (scene.root / "inside" / CONFIG_NAME).symlink_to(CONFIG_NAME)
    (scene.root / "outside").symlink_to(newer)
    (scene.root / "current").symlink_to("pirate")
    assert await scene.folder.scan()
    assert scene.names() == ["current", "outside", "pirate"]
    assert scene.standing("pirate") == scene.standing("current") == ("ready", digest_in(pirate), None)
    assert scene.standing("outside") == ("failed", None, "outside_root")


async def test_unchanged_folders_are_not_read_again(scene: Scene, pirate: Path, newer: Path) -> None:
    scene.put(pirate, "pirate")
    edit_config(scene.put(newer, "broken"), layer_replication=[[0, 1]])
    await scene.folder.scan()
    assert set(scene.changes) == {"broken", "pirate"}
    scene.changes.clear()
    scene.put(newer, "corsair")
    assert await scene.folder.scan()
    assert await scene.folder.scan()
    assert scene.changes == ["corsair"]
    os.utime(scene.root / "pirate" / WEIGHTS_NAME)
    await scene.folder.scan()
    assert scene.changes == ["corsair", "pirate"]
    assert scene.prover.proven.count(digest_in(pirate)) == 1


@pytest.mark.parametrize("retry_seconds", [0.0, 3600.0])
async def test_a_refusal_that_may_pass_is_tried_again_when_it_is_time(
    retry_seconds: float, scene: Scene, pirate: Path, newer: Path
) -> None:
    folder = scene.source(retry_seconds=retry_seconds)
    scene.put(pirate, "pirate")
    edit_config(scene.put(newer, "broken"), layer_replication=[[0, 1]])
    scene.prover.unable.add(digest_in(pirate))
    assert await folder.scan()
    assert scene.standing("pirate") == ("failed", None, "activation_failed")
    scene.prover.unable.clear()
    scene.changes.clear()
    assert await folder.scan()
    served = ("ready", digest_in(pirate), None)
    assert scene.standing("pirate") == (served if retry_seconds == 0 else ("failed", None, "activation_failed"))
    assert scene.changes == (["pirate"] if retry_seconds == 0 else [])
    os.utime(scene.root / "pirate" / WEIGHTS_NAME)  # whoever touches the files need not wait
    assert await folder.scan()
    assert scene.standing("pirate") == served
    assert "broken" not in scene.changes


async def test_watching_follows_arrivals_replacements_and_removals(scene: Scene, pirate: Path, newer: Path) -> None:
    async def until(served: str | None) -> None:
        while (scene.standing("pirate")[1] if scene.names() else None) != served:
            scene.changed.clear()
            await scene.changed.wait()

    watching = asyncio.create_task(scene.folder.watch())
    try:
        async with asyncio.timeout(60):
            scene.put(pirate, "pirate")
            await until(digest_in(pirate))
            scene.put(newer, "pirate")
            await until(digest_in(newer))
            shutil.rmtree(scene.root / "pirate")
            await until(None)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    assert watching.cancelled()
