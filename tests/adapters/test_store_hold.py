"""A blob that somebody holds is deleted by no process, and is garbage as any other once it is let go."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

HOLDER = """
import sys
from pathlib import Path
from livery_adapters.store import BlobStore
hold = BlobStore(Path(sys.argv[1])).hold(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data")


@pytest.fixture
def digest(store: BlobStore, tmp_path: Path) -> str:
    folder = tmp_path / "pirate"
    folder.mkdir()
    (folder / CONFIG_NAME).write_bytes(b"{}")
    (folder / WEIGHTS_NAME).write_bytes(b"weights")
    return store.put(folder)


@contextmanager
def held_elsewhere(root: Path, digest: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the blob until it is killed or its input ends."""
    command = [sys.executable, "-c", HOLDER, str(root), digest]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child


def test_what_another_process_holds_is_not_collected(store: BlobStore, digest: str) -> None:
    with held_elsewhere(store.root, digest) as child:
        assert store.collect_garbage([], grace_s=0) == []
        assert store.verify(digest)
        child.kill()
        child.wait(30)
        assert store.collect_garbage([], grace_s=0) == [digest]
    assert store.digests() == []


def test_every_hold_counts_and_letting_go_twice_is_letting_go_once(store: BlobStore, digest: str) -> None:
    one, two = store.hold(digest), BlobStore(store.root).hold(digest)
    one.release()
    one.release()
    assert store.collect_garbage([], grace_s=0) == []
    two.release()
    assert store.collect_garbage([], grace_s=0) == [digest]


def test_there_is_no_holding_what_is_not_there(store: BlobStore, digest: str) -> None:
    assert store.collect_garbage([], grace_s=0) == [digest]
    with pytest.raises(FileNotFoundError):
        store.hold(digest)


def test_a_version_deleted_while_its_hold_waited_is_not_held(
    store: BlobStore, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the directory and locking it somebody deletes the blob, and somebody else publishes it again."""
    lock = fcntl.flock

    def lock_late(fd: int, how: int) -> None:
        store.path(digest).rename(store.root / "aside")
        store.path(digest).mkdir()
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with pytest.raises(FileNotFoundError, match="just deleted"):
        store.hold(digest)
