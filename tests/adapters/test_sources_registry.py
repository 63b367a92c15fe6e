"""A followed folder beside others who change the same registry, or while it can't be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.peft_made import edit_config, tiny_base
from adapters.scene import Scene, digest_in
from livery_adapters.library import AdapterLibrary, Intake, from_directory
from livery_adapters.refusal import DEFAULT_LIMITS
from livery_adapters.registry import Registry, RegistryUnavailable
from livery_adapters.sources import FolderSource


class Interfering:
    """A registry before one of whose calls something happens, once."""

    def __init__(self, registry: Registry, call: str, happens: Callable[[], object]) -> None:
        self._registry, self._call, self._happens = registry, call, happens

    def __getattr__(self, name: str) -> Any:
        if name == self._call:
            self._call = ""
            self._happens()
        return getattr(self._registry, name)


def locked() -> None:
    raise RegistryUnavailable("the database is locked")


def interfere(scene: Scene, call: str, happens: Callable[[], object]) -> FolderSource:
    """A follower of the folder that something happens to."""
    scene.library.registry = Interfering(scene.registry, call, happens)  # type: ignore[assignment]
    return scene.source(retry_seconds=0)


@pytest.mark.parametrize("call", ["check_put", "put", "fail"])
async def test_a_registry_that_cannot_be_used_now_is_tried_again(
    call: str, scene: Scene, pirate: Path, newer: Path
) -> None:
    scene.put(pirate, "pirate")
    edit_config(scene.put(newer, "broken"), layer_replication=[[0, 1]])
    folder = interfere(scene, call, locked)
    await folder.scan()
    assert len(scene.names()) == 1
    await folder.scan()
    assert scene.standing("pirate") == ("ready", digest_in(pirate), None)
    assert scene.standing("broken")[0] == "failed"


async def test_what_is_gone_is_retired_once_the_registry_can_be_used(scene: Scene, pirate: Path) -> None:
    folder = interfere(scene, "withdraw", locked)
    scene.put(pirate, "pirate")
    await folder.scan()
    shutil.rmtree(scene.root / "pirate")
    await folder.scan()
    assert scene.names() == ["pirate"]
    await folder.scan()
    assert scene.names() == []


async def test_what_somebody_else_put_meanwhile_is_not_retired(scene: Scene, pirate: Path, newer: Path) -> None:
    """Between finding out that the subfolder is gone and retiring its name, that is retired and given away."""
    facts = (
        await AdapterLibrary(scene.registry, scene.store, tiny_base(), DEFAULT_LIMITS).add(
            "spare", from_directory(newer, [newer]), Intake("api")
        )
    ).active

    def give_away() -> None:
        assert facts is not None
        scene.registry.retire("pirate")
        scene.registry.put("pirate", facts.facts, source="api", origin="")

    folder = interfere(scene, "withdraw", give_away)
    scene.put(pirate, "pirate")
    await folder.scan()
    shutil.rmtree(scene.root / "pirate")
    await folder.scan()
    await folder.scan()
    assert scene.standing("pirate")[1] == digest_in(newer)


async def test_a_name_that_failed_is_forgotten_with_its_folder(scene: Scene, pirate: Path) -> None:
    edit_config(scene.put(pirate, "pirate"), layer_replication=[[0, 1]])
    await scene.folder.scan()
    assert scene.standing("pirate")[0] == "failed"
    shutil.rmtree(scene.root / "pirate")
    await scene.folder.scan()
    assert scene.names() == []
    scene.put(pirate, "pirate")
    await scene.folder.scan()
    shutil.rmtree(scene.root / "pirate")
    await scene.folder.scan()
    edit_config(scene.put(pirate, "pirate"), layer_replication=[[0, 1]])
    await scene.folder.scan()
    assert scene.names() == ["pirate"]
    shutil.rmtree(scene.root / "pirate")
    await scene.folder.scan()
    assert scene.names() == []
