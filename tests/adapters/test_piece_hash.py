"""Hashing beside the writing, and bringing to the disk beside the checks: nothing is lost by the haste."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from livery_adapters.piece_hash import LARGE, PieceHash
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME


@pytest.mark.parametrize("sizes", [[], [3], [LARGE], [1, LARGE, 2, LARGE + 1, 0, 5], [LARGE] * 40])
def test_pieces_of_any_size_in_any_order_give_the_digest_of_the_whole(sizes: list[int]) -> None:
    pieces = [os.urandom(size) for size in sizes]
    pieced = PieceHash()
    for piece in pieces:
        pieced.update(piece)
    assert pieced.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert pieced.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()  # it may be asked again


def test_a_buffer_may_be_used_again_at_once() -> None:
    buffer, whole, pieced = bytearray(LARGE), b"", PieceHash()
    for number in range(20):
        buffer[:] = bytes([number]) * LARGE
        whole += buffer
        pieced.update(memoryview(buffer))
    assert pieced.hexdigest() == hashlib.sha256(whole).hexdigest()


def test_what_is_given_up_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), BlobStore(tmp_path).incoming() as incoming:
        incoming.write(WEIGHTS_NAME, bytes(LARGE))
        assert threading.active_count() == before + 1
        raise KeyError
    assert threading.active_count() == before


@pytest.mark.parametrize("early", [True, False])
def test_files_are_on_the_disk_before_they_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """Whether somebody brought them there beside the checks or not; and for a check alone nobody does."""
    synced: list[str] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    store = BlobStore(tmp_path)
    monkeypatch.setattr(os, "fsync", watched)
    with store.incoming() as incoming:
        incoming.write(CONFIG_NAME, b"{}")
        incoming.write(WEIGHTS_NAME, b"weights")
        if early:
            incoming.sync()
        digest = incoming.seal()
        files = [str(incoming.path / name) for name in FILE_NAMES]
        folder = str(incoming.path)
        assert synced == ([*files, folder] if early else [])
        final = incoming.publish()
    assert synced[:3] == [*files, folder]
    assert synced.count(folder) == 1
    assert synced[-1] == str(final.parent)
    assert store.verify(digest)
