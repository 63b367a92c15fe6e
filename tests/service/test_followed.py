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
from livery_adapters import sources
from livery_adapters.base_model import BaseModel
from livery_adapters.effect import AdapterEffect
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import Limits
from livery_adapters.registry import Registry
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import WEIGHTS_NAME


@asynccontextmanager
async def following(tmp_path: Path, engine: FakeEngine) -> AsyncIterator[tuple[ServedAdapters, Registry, Path]]:
    """A server's adapters with their folder followed, or waited for; the registry; and the folder."""
    info = await engine.start()
    root = tmp_path / "adapters"
    root.mkdir()
    registry = Registry.open(tmp_path / "livery.db")
    base = BaseModel(BASE, info.base_digest, info.shapes)
    adapters = ServedAdapters(engine, info, base, registry, BlobStore(tmp_path / "blobs"), Limits())
    folder = FollowedFolder(root, DataFolder(tmp_path), adapters, check=engine.stats)
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
        await until(lambda: registry.find("pirate") is not None)
        assert registry.get("pirate").error_code == "unexpected"
        await until(lambda: registry.get("pirate").error_code is None)
        assert registry.get("pirate").state == "ready"
    (said,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert said.message == "adapter pirate of the folder is not taken; it is tried again"
    assert said.exc_info is not None


class FragileEngine(FakeEngine):
    """Its process ends whenever it reads one adapter, and is there again when somebody has seen that."""

    deadly = ""
    losses = 0

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        if adapter.digest == self.deadly:
            self.losses += 1
            self.lose()
        return await super().load_adapter(adapter, asker)


async def test_an_adapter_that_ends_the_engine_is_tried_twice_and_the_others_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(followed, "WATCH_AGAIN_S", 0.01)
    monkeypatch.setattr(sources, "_TIMEOUT_MS", 100)
    engine = FragileEngine(modules=MODULES)
    async with following(tmp_path, engine) as (adapters, registry, root):
        deadly, pirate = (make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("bomb", "pirate")))
        engine.deadly = read_manifest(deadly).digest
        deadly.rename(root / "bomb")
        await until(lambda: engine.losses == 1)
        await until(lambda: "looked at again when the engine is back" in caplog.text)
        assert registry.find("bomb") is None, "once may be chance"
        pirate.rename(root / "pirate")
        engine.recover()
        await until(lambda: registry.find("bomb") is not None)
        assert registry.get("bomb").error_code == "engine_lost"
        assert registry.get("pirate").state == "ready", "it came before what the engine was lost over"
        caplog.clear()
        engine.recover()
        make_adapter(tmp_path / "later", seed=2).rename(root / "later")
        await until(lambda: registry.find("later") is not None)
        assert engine.losses == 2
        os.utime(root / "bomb" / WEIGHTS_NAME)
        await until(lambda: engine.losses == 3)
        assert adapters.vitals.ended == []


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
        assert adapters.vitals.ended == []
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
