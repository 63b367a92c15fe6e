"""Adapters stream into the store: two files, counted and hashed on the way, published whole or gone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from livery_adapters.incoming import Incoming
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.store import BlobStore, StoreBusy
from livery_adapters.tensor_file import CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data", Limits(max_weight_bytes=100, max_config_bytes=10))


def fill(incoming: Incoming, weights: bytes = b"weights") -> str:
    incoming.write(CONFIG_NAME, b"{}")
    incoming.write(WEIGHTS_NAME, weights)
    return incoming.seal()


def take(store: BlobStore, weights: bytes = b"weights") -> str:
    with store.incoming() as incoming:
        digest = fill(incoming, weights)
        incoming.publish()
    return digest


def left_in(store: BlobStore) -> list[Path]:
    return list((store.root / "incoming").iterdir())


def refused(incoming: Incoming, *files: tuple[str, bytes]) -> AdapterRefused:
    with pytest.raises(AdapterRefused) as caught:
        for name, data in files:
            incoming.begin(name)
            incoming.write(name, data)
        incoming.seal()
    return caught.value


def test_pieces_give_the_digest_of_the_whole(store: BlobStore, tmp_path: Path) -> None:
    folder = tmp_path / "pirate"
    folder.mkdir()
    (folder / CONFIG_NAME).write_bytes(b"{}")
    (folder / WEIGHTS_NAME).write_bytes(b"weights")
    with store.incoming() as incoming:
        for piece in (b"wei", b"", b"g", b"hts"):
            incoming.write(WEIGHTS_NAME, piece)
        incoming.write(CONFIG_NAME, memoryview(b"{}"))
        digest = incoming.seal()
        assert store.digests() == []  # nobody sees it before it is published
        assert [(incoming.path / name).read_bytes() for name in FILE_NAMES] == [b"{}", b"weights"]
        assert incoming.publish() == store.path(digest)
    assert store.put(folder) == digest == incoming.digest
    assert store.verify(digest)
    assert left_in(store) == []


def test_what_is_not_published_is_gone(store: BlobStore) -> None:
    with store.incoming() as incoming:
        fill(incoming)
    with pytest.raises(KeyError), store.incoming() as incoming:
        incoming.write(CONFIG_NAME, b"{")
        raise KeyError
    assert store.digests() == []
    assert left_in(store) == []


@pytest.mark.parametrize(
    ("files", "code", "says"),
    [
        ([("../evil", b"x")], "unexpected_file", "'../evil' is no file of an adapter"),
        ([("adapter_model.bin", b"x")], "unexpected_file", "and nothing else"),
        ([(CONFIG_NAME, b"{}"), (CONFIG_NAME, b"{}")], "duplicate_file", "sent twice"),
        ([(CONFIG_NAME, b"{}"), (WEIGHTS_NAME, b"w"), (CONFIG_NAME, b"{}")], "duplicate_file", "sent twice"),
        ([(CONFIG_NAME, b"{}")], "missing_weights", f"{WEIGHTS_NAME} did not arrive"),
        ([(WEIGHTS_NAME, b"w")], "missing_config", f"{CONFIG_NAME} did not arrive"),
        ([], "missing_config", "did not arrive"),
        ([(CONFIG_NAME, b"12345678901")], "too_large", "over the limit of 10 bytes"),
        ([(WEIGHTS_NAME, bytes(101))], "too_large", "over the limit of 100 bytes"),
    ],
)
def test_two_files_of_bounded_size_and_nothing_else(
    files: list[tuple[str, bytes]], code: str, says: str, store: BlobStore
) -> None:
    with store.incoming() as incoming:
        caught = refused(incoming, *files)
    assert caught.code == code
    assert says in caught.message
    assert left_in(store) == []


def test_a_file_taken_up_again_is_a_duplicate(store: BlobStore) -> None:
    with store.incoming() as incoming:
        incoming.write(WEIGHTS_NAME, b"w")
        incoming.write(CONFIG_NAME, b"{}")
        with pytest.raises(AdapterRefused) as caught:
            incoming.write(WEIGHTS_NAME, b"w")
    assert caught.value.code == "duplicate_file"


def test_the_limit_stops_a_stream_and_not_a_finished_file(store: BlobStore) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            self.given += 40
            return 40

    stream = Endless()
    with store.incoming() as incoming, pytest.raises(AdapterRefused, match="over the limit of 100 bytes"):
        incoming.read(WEIGHTS_NAME, stream)  # type: ignore[arg-type]
    assert stream.given == 120


def test_an_announced_length_is_checked_before_and_after(store: BlobStore) -> None:
    with store.incoming() as incoming:
        with pytest.raises(AdapterRefused, match="over the limit of 100 bytes"):
            incoming.begin(WEIGHTS_NAME, 101)
        assert list(incoming.path.iterdir()) == []
        incoming.begin(WEIGHTS_NAME, 7)
        incoming.write(WEIGHTS_NAME, b"weight")
        with pytest.raises(AdapterRefused, match="has 6 bytes and 7 were announced") as caught:
            incoming.begin(CONFIG_NAME)
    assert caught.value.code == "incomplete"


def test_a_sealed_adapter_is_closed(store: BlobStore) -> None:
    with store.incoming() as incoming:
        for use in (incoming.publish, lambda: incoming.digest):
            with pytest.raises(RuntimeError, match="sealed"):
                use()
        fill(incoming)
        with pytest.raises(RuntimeError, match="sealed"):
            incoming.begin(CONFIG_NAME)
        assert {path.stat().st_mode & 0o777 for path in incoming.path.iterdir()} == {0o444}


def test_verifying_notices_every_change(store: BlobStore) -> None:
    digest = take(store)
    assert store.verify(digest)
    held = store.path(digest) / WEIGHTS_NAME
    held.chmod(0o644)
    held.write_bytes(b"weightz")
    assert not store.verify(digest)
    held.unlink()
    assert not store.verify(digest)
    assert not store.verify("a" * 64)


def test_exports_are_the_two_files_in_an_empty_directory(store: BlobStore, tmp_path: Path) -> None:
    digest = take(store)
    store.export(digest, tmp_path / "out" / "pirate")
    assert sorted(path.name for path in (tmp_path / "out" / "pirate").iterdir()) == sorted(FILE_NAMES)
    assert store.put(tmp_path / "out" / "pirate") == digest
    with pytest.raises(FileExistsError):
        store.export(digest, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        store.export("a" * 64, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -- on the disk for good ---------------------------------------------------------------------------------


def test_nobody_but_the_end_waits_for_the_disk(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files are brought to the disk they are ended, sealed and looked at; only publishing waits."""
    reached, go = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(fd: int) -> None:
        reached.set()
        assert go.wait(60)
        fsync(fd)

    with ThreadPoolExecutor() as threads, store.incoming() as incoming:
        incoming.write(CONFIG_NAME, b"{}")
        incoming.write(WEIGHTS_NAME, b"weights")
        monkeypatch.setattr(os, "fsync", slow)
        syncing = threads.submit(incoming.sync)
        try:
            assert reached.wait(60)
            threads.submit(incoming.end).result(60)
            assert len(threads.submit(incoming.seal).result(60)) == 64
            publishing = threads.submit(incoming.publish)
            assert store.digests() == [], "published before it is on the disk"
        finally:
            go.set()
        syncing.result(60)
        assert publishing.result(60) == store.path(incoming.digest)
    assert store.verify(incoming.digest)


def test_closing_waits_for_the_disk(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go, closed = threading.Event(), threading.Event(), threading.Event()
    fsync, closed_before = os.fsync, []

    def slow(fd: int) -> None:
        reached.set()
        assert go.wait(60)
        closed_before.append(closed.is_set())
        fsync(fd)

    def close(incoming: Incoming) -> None:
        incoming.close()
        closed.set()

    with ThreadPoolExecutor() as threads, store.incoming() as incoming:
        fill(incoming)
        monkeypatch.setattr(os, "fsync", slow)
        syncing = threads.submit(incoming.sync)
        assert reached.wait(60)
        closing = threads.submit(close, incoming)
        closed.wait(0.1)  # time for a close that doesn't wait to show
        go.set()
        syncing.result(60)
        closing.result(60)
        assert closed_before == [False] * 3  # two files and their directory


def test_the_first_blob_of_a_folder_makes_the_folder_last(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made the folder may have been killed before it was on the disk, or be at it."""
    digest = take(store)
    store.collect_garbage([], grace_s=0)
    home = store.path(digest)
    assert home.parent.is_dir() and not home.exists()
    fsync, synced = os.fsync, []

    def noted(fd: int) -> None:
        synced.append((os.fstat(fd).st_ino, home.exists()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    take(store)
    assert (home.parent.parent.stat().st_ino, False) in synced, "a blob is in a folder that a power cut can take away"
    assert (home.parent.stat().st_ino, True) in synced


# -- garbage ---------------------------------------------------------------------------------------------


def test_garbage_is_what_nobody_keeps_once_it_is_old(store: BlobStore) -> None:
    kept, dropped = take(store, b"kept"), take(store, b"dropped")
    assert store.collect_garbage([kept], grace_s=60) == []
    assert store.collect_garbage(lambda: [kept], grace_s=0) == [dropped]
    assert store.digests() == [kept]
    assert left_in(store) == []


def test_publishing_again_makes_a_version_young_again(store: BlobStore) -> None:
    digest = take(store)
    os.utime(store.path(digest), (0, 0))
    take(store)
    assert store.collect_garbage([], grace_s=60) == []
    os.utime(store.path(digest), (0, 0))
    assert store.collect_garbage([], grace_s=60) == [digest]


def test_no_garbage_is_collected_between_publishing_and_committing(store: BlobStore) -> None:
    rows: list[str] = []
    other = BlobStore(store.root)
    with store.incoming() as incoming:
        digest = fill(incoming)
        assert other.collect_garbage([], grace_s=0, timeout_s=0) == []  # a slow download holds nothing up
        assert incoming.path.is_dir()
        incoming.publish()
        with pytest.raises(StoreBusy):
            other.collect_garbage(lambda: rows, grace_s=0, timeout_s=0)
        rows.append(digest)
        incoming.done()
        assert other.collect_garbage(lambda: rows, grace_s=0, timeout_s=0) == []
    assert store.verify(digest)
    rows.clear()
    assert other.collect_garbage(lambda: rows, grace_s=0, timeout_s=0) == [digest]


def test_a_context_left_without_done_lets_garbage_be_collected(store: BlobStore) -> None:
    with pytest.raises(KeyError), store.incoming() as incoming:
        fill(incoming)
        incoming.publish()
        raise KeyError  # the row could not be committed
    assert len(store.collect_garbage([], grace_s=0, timeout_s=0)) == 1


# -- disks -----------------------------------------------------------------------------------------------

FULL = """
import resource, sys
from pathlib import Path
from livery_adapters.refusal import AdapterRefused
from livery_adapters.store import BlobStore
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
store = BlobStore(Path(sys.argv[1]))
try:
    with store.incoming() as incoming:
        incoming.write("adapter_config.json", b"{}")
        for _ in range(10):
            incoming.write("adapter_model.safetensors", bytes(9_000))
except AdapterRefused as refused:
    print(refused.code, refused.message)
"""


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", FULL, str(root)], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("storage_full the adapter can't be stored in the data folder"), done.stderr
    assert "free some space" in done.stdout
    assert list((root / "incoming").iterdir()) == []
    assert BlobStore(root).digests() == []


def test_a_data_folder_that_is_gone_is_said(store: BlobStore) -> None:
    (store.root / "incoming").rmdir()
    with pytest.raises(AdapterRefused, match="No such file or directory") as caught, store.incoming():
        pass
    assert caught.value.code == "storage_failed"
