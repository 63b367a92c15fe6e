"""A folder of adapter files is one registry's: to another they are garbage, and are neither deleted nor added to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from adapters.peft_made import make, tiny_base
from adapters.scene import Scene
from livery_adapters.blob_owner import MARK
from livery_adapters.library import AdapterLibrary, Intake, from_directory
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused
from livery_adapters.registry import Registry
from livery_adapters.store import BlobStore

API = Intake("api")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    make(tmp_path / "pirate")
    make(tmp_path / "corsair", seed=2)
    yield made
    made.registry.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[AdapterLibrary]:
    """The same folder under another registry."""
    with closing(Registry.open(tmp_path / "other.db")) as registry:
        yield AdapterLibrary(registry, BlobStore(tmp_path / "data"), tiny_base(), DEFAULT_LIMITS)


async def add(library: AdapterLibrary, path: Path) -> str:
    record = await library.add(path.name, from_directory(path, [path]), API)
    assert record.active is not None
    return record.active.facts.weights


async def refused_by(library: AdapterLibrary, path: Path) -> AdapterRefused:
    """What opening, adding and collecting say: all the same."""
    with pytest.raises(AdapterRefused) as opened:
        library.store.check_owner()
    with pytest.raises(AdapterRefused) as added:
        await add(library, path)
    with pytest.raises(AdapterRefused) as collected:
        await library.collect_garbage()
    assert library.registry.count() == 0
    assert opened.value.code == added.value.code == collected.value.code == "blobs_of_another"
    return opened.value


async def test_what_another_registry_lists_is_not_collected(
    scene: Scene, other: AdapterLibrary, tmp_path: Path
) -> None:
    digest = await add(scene.library, tmp_path / "pirate")
    refused = await refused_by(other, tmp_path / "corsair")
    for said in (scene.registry.identity(), other.registry.identity(), "--registry", "--data"):
        assert said in refused.message
    assert scene.store.digests() == [digest]
    await scene.library.retire("pirate")
    assert await scene.library.collect_garbage() == [digest], "its own registry still collects"


async def test_a_folder_from_before_is_the_registrys_that_lists_what_it_holds(
    scene: Scene, other: AdapterLibrary, tmp_path: Path
) -> None:
    digests = [await add(scene.library, tmp_path / name) for name in ("pirate", "corsair")]
    mark = tmp_path / "data" / MARK
    mark.unlink()
    assert "none of the 2 versions" in (await refused_by(other, tmp_path / "corsair")).message
    assert not mark.exists()
    await scene.library.retire("pirate")
    scene.store.check_owner()
    await scene.library.retire("corsair")
    assert mark.read_text().strip() == scene.registry.identity()
    assert sorted(await scene.library.collect_garbage()) == sorted(digests), "though it lists nothing any more"


async def test_an_empty_folder_is_whose_files_come_next(scene: Scene, other: AdapterLibrary, tmp_path: Path) -> None:
    await add(scene.library, tmp_path / "pirate")
    await scene.library.retire("pirate")
    await scene.library.collect_garbage()
    digest = await add(other, tmp_path / "corsair")
    with pytest.raises(AdapterRefused, match=other.registry.identity()):
        await add(scene.library, tmp_path / "pirate")
    with pytest.raises(AdapterRefused):
        await scene.library.collect_garbage()
    assert scene.store.digests() == [digest]


async def test_a_followed_folder_is_taken_once_the_files_may_be_stored(
    scene: Scene, other: AdapterLibrary, tmp_path: Path
) -> None:
    folder = scene.source(retry_seconds=0)
    await add(other, tmp_path / "corsair")
    scene.put(tmp_path / "pirate", "pirate")
    assert await folder.scan()
    assert scene.standing("pirate") == ("failed", None, "blobs_of_another")
    await other.retire("corsair")
    await other.collect_garbage()
    assert await folder.scan()
    assert scene.standing("pirate")[0] == "ready"


async def test_of_two_that_publish_first_at_once_one_has_it(
    scene: Scene, other: AdapterLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one claims it between this one's claim and its files."""
    claim = scene.store.claim

    def overtaken() -> None:
        claim()
        (tmp_path / "data" / MARK).unlink()
        other.store.claim()
        with other.store.incoming() as incoming:
            incoming.copy(tmp_path / "corsair")
            incoming.seal()
            incoming.publish()

    monkeypatch.setattr(scene.store, "claim", overtaken)
    with pytest.raises(AdapterRefused) as refused:
        await add(scene.library, tmp_path / "pirate")
    assert refused.value.code == "blobs_of_another"
    assert scene.registry.count() == 0
