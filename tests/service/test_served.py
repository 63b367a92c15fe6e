"""The adapters of a running service: following the folder outlives whatever one adapter does to the engine."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from api.live_server import BASE, MODULES
from api.peft_files import make_adapter
from livery.engine.base import AdapterRef
from livery.engine.fake import FakeEngine
from livery.served import AdapterFolders, ServedAdapters
from livery_adapters.base_model import BaseModel
from livery_adapters.refusal import Limits


class StumblingEngine(FakeEngine):
    """Its first load ends with something no engine promised."""

    stumbled = False

    async def load_adapter(self, adapter: AdapterRef) -> None:
        if not self.stumbled:
            self.stumbled = True
            raise ValueError("nobody thought of this")
        await super().load_adapter(adapter)
        self._notify()


async def test_the_folder_is_followed_after_a_surprise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = StumblingEngine(modules=MODULES)
    info = await engine.start()
    folders = AdapterFolders(tmp_path / "adapters", tmp_path / "data")
    (tmp_path / "adapters").mkdir()
    adapters = ServedAdapters(engine, BaseModel(BASE, info.base_digest, info.shapes), folders, Limits())
    await adapters.start()
    try:
        make_adapter(tmp_path / "pirate").rename(tmp_path / "adapters" / "pirate")
        async with asyncio.timeout(60):
            await engine.wait_until(lambda engine: bool(engine.loaded))
        while not adapters.active():
            await asyncio.sleep(0)
    finally:
        await adapters.stop()
    assert [name for name, _ in adapters.active()] == ["pirate"]
    (said,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "following the adapter folder failed" in said.message
    assert said.exc_info is not None
