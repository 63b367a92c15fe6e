"""The blob store keeps each version once under its digest, whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME

KNOWN = b'{"r": 8}', b"weights"
# By sha256sum: of each file, then of the tagged list of the two. Stored digests outlive releases.
KNOWN_DIGEST = "a53247cc1fe7f2dee5052c6142eb678ae307eabb19febf7a8269f668aee503ff"


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data")


def adapter(folder: Path, config: bytes = b"{}", weights: bytes = b"weights") -> Path:
    """The store copies bytes and looks into none of them, so any will do."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_NAME).write_bytes(config)
    (folder / WEIGHTS_NAME).write_bytes(weights)
    return folder


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_a_version_is_found_under_the_digest_of_its_contents(store: BlobStore, tmp_path: Path) -> None:
    source = adapter(tmp_path / "pirate", *KNOWN)
    digest = store.put(source)
    assert digest == KNOWN_DIGEST
    assert store.path(digest) == store.root / "sha256" / digest[:2] / digest
    assert store.digests() == [digest]
    assert [(store.path(digest) / name).read_bytes() for name in FILE_NAMES] == list(KNOWN)


def test_only_the_two_files_are_kept_and_nobody_may_write_them(store: BlobStore, tmp_path: Path) -> None:
    source = adapter(tmp_path / "pirate")
    (source / "optimizer.pt").write_bytes(b"not wanted")
    kept = store.path(store.put(source))
    assert sorted(path.name for path in kept.iterdir()) == sorted(FILE_NAMES)
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o444}


def test_equal_contents_are_kept_once_whatever_they_are_called(store: BlobStore, tmp_path: Path) -> None:
    first = store.put(adapter(tmp_path / "pirate"))
    inodes = [path.stat().st_ino for path in files_below(store.path(first))]
    assert store.put(adapter(tmp_path / "corsair")) == first
    assert [path.stat().st_ino for path in files_below(store.root)] == inodes


@pytest.mark.parametrize(("config", "weights"), [(b"{ }", b"weights"), (b"{}", b"weightz"), (b"{}w", b"eights")])
def test_other_contents_have_another_digest(config: bytes, weights: bytes, store: BlobStore, tmp_path: Path) -> None:
    first = store.put(adapter(tmp_path / "one"))
    second = store.put(adapter(tmp_path / "two", config, weights))
    assert store.digests() == sorted([first, second])
    assert first != second


@pytest.mark.parametrize("rotten", [b"weightz", None])
def test_a_held_version_whose_files_changed_is_replaced(rotten: bytes | None, store: BlobStore, tmp_path: Path) -> None:
    source = adapter(tmp_path / "pirate")
    digest = store.put(source)
    held = store.path(digest) / WEIGHTS_NAME
    held.unlink()
    if rotten is not None:
        held.write_bytes(rotten)
    assert store.put(source) == digest
    assert held.read_bytes() == b"weights"
    assert len(files_below(store.root)) == 2


def test_what_is_not_the_expected_version_is_not_kept(store: BlobStore, tmp_path: Path) -> None:
    source = adapter(tmp_path / "pirate")
    with pytest.raises(AdapterRefused, match="'pirate' changed while they were read") as caught:
        store.put(source, "a" * 64)
    assert caught.value.code == "incomplete"
    assert store.digests() == []
    assert store.put(source, store.put(source)) == store.digests()[0]


def test_a_version_outlives_changes_of_its_source(store: BlobStore, tmp_path: Path) -> None:
    source = adapter(tmp_path / "pirate")
    digest = store.put(source)
    (source / WEIGHTS_NAME).write_bytes(b"changed")
    assert (store.path(digest) / WEIGHTS_NAME).read_bytes() == b"weights"
    assert store.put(source) != digest


@pytest.mark.parametrize(
    "digest",
    ["", "..", "../" * 20 + "etc", "/etc/passwd", "a" * 63, "a" * 65, "A" * 64, "a" * 63 + "\n", "a" * 64 + "\n"],
)
def test_nothing_but_a_digest_becomes_a_path(digest: str, store: BlobStore, tmp_path: Path) -> None:
    outside = adapter(tmp_path / "etc")
    for use in (store.path, store.hold):
        with pytest.raises(ValueError, match="is not a SHA-256 digest"):
            use(digest)
    assert len(files_below(outside)) == 2


def test_what_a_dead_process_left_is_dropped_and_what_a_living_one_writes_is_not(
    store: BlobStore, tmp_path: Path
) -> None:
    left = store.root / "incoming" / "0123456789abcdef"
    (left / "files").mkdir(parents=True)
    (left / "lock").touch()
    adapter(left / "files")
    with store.incoming() as incoming:
        incoming.write(CONFIG_NAME, b"{}")
        after = BlobStore(store.root)
        assert after.digests() == []
        assert not left.exists()
        assert incoming.path.exists()
        incoming.write(WEIGHTS_NAME, b"weights")
        digest = incoming.seal()
        incoming.publish()
    assert after.digests() == [digest]


def test_a_refused_source_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "data", Limits(max_weight_bytes=6))
    with pytest.raises(AdapterRefused, match="over the limit of 6 bytes") as caught:
        store.put(adapter(tmp_path / "pirate", weights=b"weights"))
    assert caught.value.code == "too_large"
    with pytest.raises(AdapterRefused) as caught:
        store.put(tmp_path / "nowhere")
    assert caught.value.code == "missing_config"
    assert files_below(store.root) == []
    assert list((store.root / "incoming").iterdir()) == []


def test_links_are_never_followed(store: BlobStore, tmp_path: Path) -> None:
    source = adapter(tmp_path / "pirate")
    (tmp_path / "secret").write_bytes(b"of somebody else")
    (source / WEIGHTS_NAME).unlink()
    (source / WEIGHTS_NAME).symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterRefused) as caught:
        store.put(source)
    assert caught.value.code == "not_regular"
    assert files_below(store.root) == []


def test_what_was_thrown_out_may_come_again(store: BlobStore, tmp_path: Path) -> None:
    first = store.put(adapter(tmp_path / "one"))
    second = store.put(adapter(tmp_path / "two", b"{ }"))
    assert store.collect_garbage([second], grace_s=0) == [first]
    assert store.digests() == [second]
    assert len(files_below(store.root)) == 2
    assert store.put(adapter(tmp_path / "one")) == first
    assert store.digests() == sorted([first, second])


def test_threads_that_put_the_same_version_agree(store: BlobStore, tmp_path: Path) -> None:
    source = adapter(tmp_path / "pirate", weights=os.urandom(1 << 18))
    together = threading.Barrier(4)
    digests: list[str] = []

    def put() -> None:
        together.wait()
        digests.append(store.put(source))

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert store.digests() == [digests[0]]
    assert len(files_below(store.root)) == 2
