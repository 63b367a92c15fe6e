"""What was never run on this base model: it takes no short cut, displaces nothing, and isn't gone back to unseen."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.peft_made import tiny_base
from adapters.scene import Scene, digest_in, out_of
from livery_adapters.base_model import BaseModel
from livery_adapters.library import AdapterLibrary, Intake
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused
from livery_adapters.registry import NothingToRollBack

API = Intake("api")


def offline(scene: Scene, base: BaseModel | None = None) -> AdapterLibrary:
    """The same stock as somebody without a model at hand has it."""
    return AdapterLibrary(scene.registry, scene.store, base or tiny_base(), DEFAULT_LIMITS)


async def test_files_that_were_only_registered_are_proven_when_they_come_again(scene: Scene, pool: list[Path]) -> None:
    await offline(scene).add("pirate", out_of(pool[0]), API)
    scene.prover.unable.add(digest_in(pool[0]))
    with pytest.raises(AdapterRefused, match="no room for it"):
        await scene.library.add("corsair", out_of(pool[0]), API)
    assert scene.standing("pirate") == ("registered", digest_in(pool[0]), None)
    assert scene.names() == ["pirate"]
    scene.prover.unable.clear()
    await scene.library.add("pirate", out_of(pool[0]), API)
    assert scene.standing("pirate") == ("ready", digest_in(pool[0]), None)


async def test_files_that_were_run_are_known_to_have_been_without_a_model(scene: Scene, pool: list[Path]) -> None:
    await scene.library.add("pirate", out_of(pool[0]), API)
    assert (await offline(scene).add("corsair", out_of(pool[0]), API)).state == "ready"


async def test_what_was_never_run_waits_beside_what_was(scene: Scene, pool: list[Path]) -> None:
    await scene.library.add("pirate", out_of(pool[0]), API)
    record = await offline(scene).add("pirate", out_of(pool[1]), API)
    assert record.active is not None
    assert (record.state, record.active.facts.digest) == ("ready", digest_in(pool[0]))
    assert [version.state for version in scene.registry.versions("pirate")] == ["registered", "ready"]
    await scene.library.activate("pirate", "2")
    assert scene.standing("pirate") == ("ready", digest_in(pool[1]), None)


async def test_going_back_passes_over_what_another_model_was_given(scene: Scene, pool: list[Path]) -> None:
    another = BaseModel("another", "f" * 64, tiny_base().shapes)
    await scene.library.add("pirate", out_of(pool[0]), API)
    foreign = AdapterLibrary(scene.registry, scene.store, another, DEFAULT_LIMITS, scene.prover)
    await foreign.add("pirate", out_of(pool[1]), API)
    await scene.library.add("pirate", out_of(pool[2]), API)
    await scene.library.rollback("pirate")
    assert scene.standing("pirate") == ("ready", digest_in(pool[0]), None)
    with pytest.raises(NothingToRollBack):
        await scene.library.rollback("pirate")


async def test_what_was_never_run_is_proven_before_it_is_gone_back_to(scene: Scene, pool: list[Path]) -> None:
    await offline(scene).add("pirate", out_of(pool[0]), API)
    await scene.library.add("pirate", out_of(pool[1]), API)
    scene.prover.unable.add(digest_in(pool[0]))
    with pytest.raises(AdapterRefused, match="no room for it"):
        await scene.library.rollback("pirate")
    assert scene.standing("pirate")[1] == digest_in(pool[1])
    scene.prover.unable.clear()
    await scene.library.rollback("pirate")
    assert scene.standing("pirate") == ("ready", digest_in(pool[0]), None)


async def test_the_history_that_is_kept_is_bounded_as_it_grows(scene: Scene, pool: list[Path]) -> None:
    library = AdapterLibrary(scene.registry, scene.store, tiny_base(), DEFAULT_LIMITS, scene.prover, keep_versions=2)
    for folder in pool:
        await library.add("pirate", out_of(folder), API)
    assert [version.number for version in scene.registry.versions("pirate")] == [3, 2]
    assert await scene.kept() == sorted(map(digest_in, pool[1:]))
