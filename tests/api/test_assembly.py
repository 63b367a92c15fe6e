"""What putting a server's parts together leaves behind when it fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from api.live_server import BASE, MODULES
from livery.assembly import Assembly, assemble, gate_for, source_policy
from livery.data_folder import DataFolder
from livery.engine.fake import FakeEngine
from livery.text import Tokenizer


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
