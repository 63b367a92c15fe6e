"""What putting a server's parts together leaves behind when it fails."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from api.live_server import BASE, MODULES
from api.peft_files import make_adapter
from livery.assembly import Assembly, assemble, gate_for, source_policy
from livery.data_folder import DataFolder, DataFolderUnusable
from livery.engine.fake import FakeEngine
from livery.text import Tokenizer
from livery_adapters.registry import Registry
from livery_adapters.shared_blobs import SharedBlobs
from livery_adapters.store import BlobStore


def held_below(folder: Path) -> set[str]:
    """The files below a folder that this process has open."""
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return {target for link in links if os.path.islink(link) if (target := os.readlink(link)).startswith(str(folder))}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system doesn't say what is open")
async def test_a_start_that_fails_leaves_nothing_open(tmp_path: Path, tokenizer: Tokenizer) -> None:
    engine = FakeEngine(modules=MODULES)
    info = await engine.start()
    missing = tmp_path / "missing"
    plan = Assembly(
        base_name=BASE,
        data=DataFolder(tmp_path / "data"),
        root=missing,
        sources=source_policy((), missing),
        gate=gate_for(info),
    )
    plan.data.make()
    with pytest.raises(NotADirectoryError, match="missing"):
        await assemble(engine, info, tokenizer, plan, lambda _: None)
    assert (tmp_path / "data" / "livery.db").is_file()
    assert held_below(tmp_path) == set()


async def test_a_folder_with_another_registrys_files_is_not_served(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Its sweeper would find each of them unused."""
    engine, data = FakeEngine(modules=MODULES), DataFolder(tmp_path / "data")
    data.make()
    store = BlobStore(data.adapters)
    with closing(Registry.open(tmp_path / "theirs.db")) as theirs:
        store.belong_to(theirs.identity, theirs.weights_in_use)
        digest = store.put(make_adapter(tmp_path / "pirate"))
    info = await engine.start()
    plan = Assembly(base_name=BASE, data=data, sources=source_policy((), None), gate=gate_for(info))
    with pytest.raises(DataFolderUnusable, match="belong to another registry"):
        await assemble(engine, info, tokenizer, plan, lambda _: None)
    assert store.digests() == [digest]


async def test_the_registry_knows_where_its_servers_share_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    engine, data = FakeEngine(modules=MODULES), DataFolder(tmp_path / "data")
    data.make()
    info = await engine.start()
    plan = Assembly(
        base_name=BASE,
        data=data,
        shared=SharedBlobs("s3://bucket/livery/"),
        sources=source_policy((), None),
        gate=gate_for(info),
    )
    parts = await assemble(engine, info, tokenizer, plan, lambda _: None)
    assert parts.registry.blob_store() == "s3://bucket/livery"
    await parts.stop()
