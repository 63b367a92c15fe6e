"""Files of adapters in use: a descriptor for each, whoever uses it, and none left behind where there are too few."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from livery import descriptors
from livery.engine.base import AdapterPart, AdapterRef
from livery.holds import Holds
from livery.refusals import OutOfDescriptors
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME
from service.few_descriptors import at_most, only, opened

PARTS = 8


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data")


@pytest.fixture
def blobs(store: BlobStore, tmp_path: Path) -> list[str]:
    return [_stored(store, tmp_path / str(number)) for number in range(PARTS)]


def _stored(store: BlobStore, folder: Path) -> str:
    folder.mkdir()
    (folder / CONFIG_NAME).write_bytes(b"{}")
    (folder / WEIGHTS_NAME).write_text(folder.name)
    return store.put(folder)


def ref(name: str, blobs: list[str]) -> AdapterRef:
    return AdapterRef(name, tuple(AdapterPart(one, "somewhere") for one in blobs))


@pytest.fixture
def holds(store: BlobStore) -> Holds:
    return Holds(store.hold, lambda _: None)


def test_what_could_not_be_held_whole_is_not_held_at_all(store: BlobStore, blobs: list[str], holds: Holds) -> None:
    before = opened()
    with only(5), pytest.raises(OutOfDescriptors):
        holds.keep(ref("sum", blobs), composed=True)
    assert opened() == before
    assert not holds.in_use("sum")
    assert not holds.unused()
    assert set(store.collect_garbage([], grace_s=0)) == set(blobs)


def test_files_take_one_descriptor_however_many_use_them(store: BlobStore, blobs: list[str], holds: Holds) -> None:
    before, sums = opened(), [f"sum-{number}" for number in range(20)]
    for name in sums:
        holds.keep(ref(name, blobs))
        holds.keep(ref(name, blobs))
    assert opened() - before == PARTS
    for name in sums[:-1]:
        holds.let_go(name)
        holds.let_go(name)
    holds.let_go(sums[-1])
    assert store.collect_garbage([], grace_s=0) == []
    holds.let_go(sums[-1])
    assert opened() == before
    assert set(store.collect_garbage([], grace_s=0)) == set(blobs)


def test_files_that_are_gone_leave_the_others_free(store: BlobStore, blobs: list[str], holds: Holds) -> None:
    store.collect_garbage(blobs[:-1], grace_s=0)
    before = opened()
    with pytest.raises(FileNotFoundError):
        holds.keep(ref("sum", blobs))
    assert opened() == before


def test_connections_leave_room_for_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(soft: int, adapters: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
        return descriptors.connections(adapters)

    for soft in (64, 256, 1024, 4096, 20000):
        for adapters in (0, 100, 8192, sys.maxsize):
            most = beside(soft, adapters)
            assert 0 < most + min(most, adapters) <= max(soft - descriptors.RESERVED, soft // 2)
    assert beside(1024, 8192) == (1024 - descriptors.RESERVED) // 2
    assert beside(20000, 8192) == 20000 - descriptors.RESERVED - 8192
    assert beside(resource.RLIM_INFINITY, 8192) == descriptors.MOST_CONNECTIONS


def test_a_process_and_those_it_starts_get_all_that_the_system_allows() -> None:
    show = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    with at_most(1000):
        descriptors.raise_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        told = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True, timeout=60)
    assert soft == hard
    assert told.stdout.split() == [str(soft), str(hard)]
