"""Whoever is cancelled while an adapter is taken in leaves nothing half-way: no file under a thread, no lost blob."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from adapters.peft_made import make
from adapters.scene import Scene, digest_in
from livery_adapters.library import Intake, from_directory
from livery_adapters.store import BlobStore, StoreBusy
from livery_adapters.tensor_file import CONFIG_NAME


class Meanwhile(bytes):
    """A chunk during whose writing something else happens: `happens` is called when it is measured."""

    happens: threading.Thread

    def __len__(self) -> int:
        if self.happens.ident is None:
            self.happens.start()
            self.happens.join(0.2)  # it can't end before this write does; without the lock it does at once
        return super().__len__()


def test_a_file_is_not_closed_under_a_thread_that_writes_it(tmp_path: Path) -> None:
    """The number of a file closed too early would be the next file's, and the bytes would go there."""
    victims: list[int] = []
    with BlobStore(tmp_path / "data").incoming() as incoming:

        def close_and_open_another() -> None:
            incoming.close()
            victims.append(os.open(tmp_path / "victim", os.O_RDWR | os.O_CREAT))

        incoming.begin(CONFIG_NAME)
        chunk = Meanwhile(b"bytes of an adapter")
        chunk.happens = threading.Thread(target=close_and_open_another)
        incoming.write(CONFIG_NAME, chunk)
        chunk.happens.join(30)
        with pytest.raises(RuntimeError, match="has ended"):
            incoming.write(CONFIG_NAME, b"more")
        with pytest.raises(RuntimeError, match="has ended"):
            incoming.seal()
    assert (tmp_path / "victim").read_bytes() == b""
    os.close(*victims)


async def test_a_row_on_its_way_into_the_registry_keeps_its_files(scene: Scene, tmp_path: Path) -> None:
    """The task is cancelled between publishing and committing, which another writer of the database holds up."""
    pirate = tmp_path / "pirate"
    make(pirate, seed=1)
    scene.registry.identity()  # which is written once, before any file is published
    held, let_go = threading.Event(), threading.Event()

    def hold_the_database() -> None:
        with scene.registry.database.write():
            held.set()
            let_go.wait(30)

    async with asyncio.timeout(60):
        holding = asyncio.create_task(asyncio.to_thread(hold_the_database))
        await asyncio.to_thread(held.wait)
        adding = asyncio.create_task(scene.library.add("pirate", from_directory(pirate, [tmp_path]), Intake("api")))
        while not scene.store.digests():
            await asyncio.to_thread(os.sched_yield)
        adding.cancel()
        done, _ = await asyncio.wait([adding], timeout=0.2)  # it can't end yet
        assert not done
        adding.cancel()
        with pytest.raises(StoreBusy):
            await asyncio.to_thread(scene.store.collect_garbage, [], 0, timeout_s=0)
        let_go.set()
        await holding
        with pytest.raises(asyncio.CancelledError):
            await adding
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)
    assert await scene.kept() == [digest_in(pirate)]
