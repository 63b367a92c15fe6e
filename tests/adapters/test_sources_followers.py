"""Servers of one registry, each with a data folder and an adapter folder of its own (tests/postgres: on PostgreSQL)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from adapters.peft_made import edit_config, make
from adapters.scene import Scene, digest_in
from livery_adapters.registry.schema import adapters


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    make(folder, seed=1)
    return folder


@pytest.fixture
def pair(new_url: Callable[[], str], tmp_path: Path) -> Iterator[tuple[Scene, Scene]]:
    """Two servers."""
    url = new_url()
    made = Scene(tmp_path / "here", url), Scene(tmp_path / "there", url)
    yield made
    for scene in made:
        scene.registry.close()


async def restarted(scene: Scene) -> None:
    scene.folder = scene.source()
    await scene.folder.start()
    assert await scene.folder.scan()


async def test_a_server_with_an_empty_folder_leaves_what_others_gave(pair: tuple[Scene, Scene], one: Path) -> None:
    here, there = pair
    here.put(one, "pirate")
    here.put(one, "corsair")
    await restarted(here)
    await restarted(there)
    assert here.names() == ["corsair", "pirate"]
    there.put(one, "privateer")  # and one with fewer
    assert await there.folder.scan()
    await restarted(there)
    assert here.names() == ["corsair", "pirate", "privateer"]
    shutil.rmtree(here.root / "pirate")
    await restarted(here)
    assert here.names() == ["corsair", "privateer"]


async def test_what_two_folders_have_goes_with_the_one_that_gave_it_last(pair: tuple[Scene, Scene], one: Path) -> None:
    """As when pods with the same files replace each other."""
    here, there = pair
    for scene in pair:
        scene.put(one, "pirate")
        await restarted(scene)
    assert here.registry.get("pirate").generation == 1
    shutil.rmtree(here.root / "pirate")
    assert await here.folder.scan()
    assert there.standing("pirate") == ("ready", digest_in(one), None)
    shutil.rmtree(there.root / "pirate")
    assert await there.folder.scan()
    assert there.names() == []


async def test_a_bad_copy_elsewhere_says_nothing_about_a_good_one(pair: tuple[Scene, Scene], one: Path) -> None:
    here, there = pair
    here.put(one, "pirate")
    await restarted(here)
    edit_config(there.put(one, "pirate"), layer_replication=[[0, 1]])
    await restarted(there)
    shutil.rmtree(there.root / "pirate")
    assert await there.folder.scan()
    assert here.standing("pirate") == ("ready", digest_in(one), None)


async def test_a_folder_that_is_empty_after_a_restart_retires_nothing(
    pair: tuple[Scene, Scene], one: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = pair
    here.put(one, "pirate")
    here.put(one, "corsair")
    there.put(one, "privateer")
    for scene in pair:
        await restarted(scene)
    here.root.rename(away := here.root.with_name("away"))
    here.root.mkdir()
    with caplog.at_level(logging.WARNING):
        await restarted(here)
        assert await here.folder.scan()
    assert here.names() == ["corsair", "pirate", "privateer"]
    (told,) = [record.getMessage() for record in caplog.records]
    for word in (str(here.root), "corsair, pirate", "livery adapters rm"):
        assert word in told
    assert "privateer" not in told
    here.changes.clear()
    (away / "pirate").rename(here.root / "pirate")  # the volume, with all but one
    assert await here.folder.scan()
    assert here.names() == ["pirate", "privateer"]
    assert here.changes == ["corsair"]


async def test_a_folder_that_is_emptied_before_our_eyes_retires_what_it_had(
    pair: tuple[Scene, Scene], one: Path
) -> None:
    here, _ = pair
    here.put(one, "pirate")
    await restarted(here)
    shutil.rmtree(here.root / "pirate")
    assert await here.folder.scan()
    assert here.names() == []


async def test_what_was_given_before_followers_were_told_apart_is_claimed_where_it_lies(
    pair: tuple[Scene, Scene], one: Path
) -> None:
    here, there = pair
    here.put(one, "pirate")
    here.put(one, "removed")
    await restarted(here)
    with here.registry.database.write() as connection:
        connection.execute(update(adapters).values(follower=None))
    shutil.rmtree(here.root / "removed")
    here.changes.clear()
    await restarted(there)
    await restarted(here)
    assert here.names() == ["pirate", "removed"]
    assert here.changes == []  # it wasn't read again
    shutil.rmtree(here.root / "pirate")
    here.put(one, "another")
    await restarted(here)
    assert here.names() == ["another", "removed"]
