"""A folder that can't be looked at for a while: what it gave, with its history, isn't taken for gone."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from adapters.scene import Scene, digest_in
from livery_adapters.sources import FolderSource


class Unseen:
    """The system tells nothing of what is below a folder, for this reason."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, below: Path, code: int) -> None:
        self._patch = monkeypatch
        self._below = f"{below}{os.sep}"
        self._code = code

    def begin(self) -> None:
        stat = os.stat

        def refused(path: Any, *rest: Any, **options: Any) -> os.stat_result:
            if isinstance(path, (str, os.PathLike)) and str(path).startswith(self._below):
                raise OSError(self._code, os.strerror(self._code), str(path))
            return stat(path, *rest, **options)

        self._patch.setattr(os, "stat", refused)

    def end(self) -> None:
        self._patch.undo()


def following(scene: Scene) -> FolderSource:
    """A follower that knows of a tenant, acme."""
    return FolderSource(
        scene.root,
        scene.library,
        scene.changing,
        follower=scene.follower,
        quiet_seconds=0,
        is_tenant=lambda name: name == "acme",
    )


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("restarts", [False, True])
async def test_what_cannot_be_looked_at_keeps_its_history(
    code: int,
    restarts: bool,
    scene: Scene,
    pirate: Path,
    newer: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def look() -> None:
        assert await follower.scan()

    follower, name = following(scene), "acme/pirate"
    (scene.root / "acme").mkdir()
    folder = scene.put(pirate, name)
    await look()
    scene.put(newer, name)
    await look()
    scene.registry.pin(name, True)
    scene.registry.share(name, None, "bob")
    if restarts:
        follower = following(scene)
        await follower.start()
    unseen = Unseen(monkeypatch, folder, code)
    unseen.begin()
    scene.changes.clear()
    with caplog.at_level(logging.WARNING):
        await look()
        scene.put(pirate, "corsair")  # what else is there is followed meanwhile
        await look()
    unseen.end()
    assert [os.strerror(code) in record.getMessage() for record in caplog.records] == [True]
    await look()
    assert scene.changes == ["corsair"]
    record = scene.registry.get(name)
    assert (record.state, record.pinned, len(scene.registry.versions(name))) == ("ready", True, 2)
    assert scene.registry.shared_with(name) == ("bob",)
    shutil.rmtree(folder)
    await look()
    assert scene.names() == ["corsair"], "gone is gone"


async def test_a_tenants_folder_that_cannot_be_looked_at_is_not_empty(
    scene: Scene, pirate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its subfolders are listed, and nothing is told of what they hold."""
    scene.put(pirate, "elsewhere")
    (scene.root / "acme").mkdir()
    scene.put(pirate, "acme/pirate")
    folder = following(scene)
    assert await folder.scan()
    assert scene.standing("acme/pirate") == ("ready", digest_in(pirate), None)
    unseen = Unseen(monkeypatch, scene.root / "acme", errno.EIO)
    unseen.begin()
    shutil.rmtree(scene.root / "elsewhere")
    assert await folder.scan()
    unseen.end()
    assert scene.names() == ["acme/pirate"]


async def test_a_volume_that_is_unmounted_under_a_server_retires_nothing(
    scene: Scene, pirate: Path, newer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene.put(pirate, "pirate")
    scene.put(newer, "corsair")
    assert await scene.folder.scan()
    away = scene.root.rename(scene.root.with_name("away"))
    scene.root.mkdir()  # where it was mounted
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert await scene.folder.scan()
    assert scene.names() == ["corsair", "pirate"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "corsair, pirate" in told
    scene.root.rmdir()
    shutil.rmtree(away / "corsair")
    away.rename(scene.root)
    assert await scene.folder.scan()
    assert scene.names() == ["pirate"]
