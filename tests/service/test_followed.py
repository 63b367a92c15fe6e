"""The operator's folder is followed for as long as the server lives, whatever happens to one look at it."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest

from api.live_server import BASE, MODULES
from api.peft_files import make_adapter
from livery import followed
from livery.data_folder import DataFolder
from livery.engine.base import NOBODY, AdapterRef, Asker
from livery.engine.fake import FakeEngine
from livery.followed import FollowedFolder
from livery.served import ServedAdapters
from livery.staging import Staged, Staging
from livery_adapters.base_model import BaseModel
from livery_adapters.effect import AdapterEffect
from livery_adapters.refusal import Limits
from livery_adapters.registry import Registry
from livery_adapters.store import BlobStore


@asynccontextmanager
async def following(tmp_path: Path, engine: FakeEngine) -> AsyncIterator[tuple[ServedAdapters, Registry, Path]]:
    """A server's adapters with their folder followed, or waited for; the registry; and the folder."""
    info = await engine.start()
    root = tmp_path / "adapters"
    root.mkdir()
    registry = Registry.open(tmp_path / "livery.db")
    base = BaseModel(BASE, info.base_digest, info.shapes)
    adapters = ServedAdapters(engine, info, base, registry, BlobStore(tmp_path / "blobs"), Limits())
    folder = FollowedFolder(root, DataFolder(tmp_path), adapters)
    await adapters.start()
    await folder.start()
    try:
        yield adapters, registry, root
    finally:
        await folder.stop()
        await adapters.stop()
        registry.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


class StumblingEngine(FakeEngine):
    """Its first load ends with something no engine promised."""

    stumbled = False

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        if not self.stumbled:
            self.stumbled = True
            raise ValueError("nobody thought of this")
        effect = await super().load_adapter(adapter)
        self._notify()
        return effect


async def test_the_folder_is_followed_after_a_surprise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = StumblingEngine(modules=MODULES)
    async with following(tmp_path, engine) as (_, registry, root):
        make_adapter(tmp_path / "pirate").rename(root / "pirate")
        async with asyncio.timeout(60):
            await engine.wait_until(lambda engine: bool(engine.loaded))
        await until(lambda: registry.find("pirate") is not None)
    (said,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "following the adapter folder failed" in said.message
    assert said.exc_info is not None


async def test_a_name_that_no_text_can_hold_is_refused_and_others_are_taken(tmp_path: Path) -> None:
    """Other processes of the server are told each name that is on its way in."""
    async with following(tmp_path, FakeEngine(modules=MODULES)) as (adapters, registry, root):
        told: list[bytes] = []
        adapters.staging.tell = lambda names: told.append(msgspec.msgpack.encode(names))
        make_adapter(tmp_path / "strange").rename(root / os.fsdecode(b"\xff"))
        await until(lambda: registry.find("\\udcff") is not None)
        assert registry.get("\\udcff").error_code == "invalid_name"
        make_adapter(tmp_path / "pirate").rename(root / "pirate")
        await until(lambda: registry.find("pirate") is not None)
    assert msgspec.msgpack.decode(told[-1]) == []


def test_what_could_not_be_told_is_not_on_its_way() -> None:
    def tell(names: list[Staged]) -> None:
        msgspec.msgpack.encode(names)

    staging = Staging(lambda _: None)
    staging.tell = tell
    with pytest.raises(UnicodeEncodeError), staging.begin("\udcff", "default"):
        pass
    with staging.begin("pirate", "default"):
        assert list(staging) == [("pirate", "default")]
    assert list(staging) == []


async def test_a_server_that_takes_over_while_the_database_is_away_follows_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(followed, "WATCH_AGAIN_S", 0.01)
    data = DataFolder(tmp_path)
    first = data.try_to_follow()
    assert first is not None
    async with following(tmp_path, FakeEngine(modules=MODULES)) as (adapters, registry, root):
        make_adapter(tmp_path / "pirate").rename(root / "pirate")
        with closing(sqlite3.connect(tmp_path / "livery.db", isolation_level=None)) as database:
            database.execute("ALTER TABLE adapters RENAME TO elsewhere")
            os.close(first)  # the server that followed is gone
            await until(lambda: "the adapter folder is looked at again in" in caplog.text)
            assert adapters.vitals.ended == []
            # Between two tries another server may have it.
            await until(lambda: _is_free(data))
            database.execute("ALTER TABLE elsewhere RENAME TO adapters")
        await until(lambda: registry.find("pirate") is not None)
        assert not _is_free(data)
        assert adapters.vitals.ended == []


def _is_free(data: DataFolder) -> bool:
    handle = data.try_to_follow()
    if handle is None:
        return False
    os.close(handle)
    return True


def test_a_follower_is_the_same_after_each_restart_and_another_in_each_folder(tmp_path: Path) -> None:
    here, there = DataFolder(tmp_path / "here"), DataFolder(tmp_path / "there")
    for folder in (here, there):
        folder.make()
    assert here.follower() == DataFolder(here.root).follower() != there.follower()
    (here.root / "follower").write_text("a write that was cut sh")
    assert here.follower() == here.follower() != "a write that was cut sh"
