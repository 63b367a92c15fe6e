"""Whatever call a process is killed at, what it acknowledged is whole and what it left behind can be collected.

LIVERY_KILL_ROUNDS sets another number of rounds than 30.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from adapters import store_child
from livery_adapters.store import BlobStore

ROUNDS = int(os.environ.get("LIVERY_KILL_ROUNDS", "30"))
CALLS = 900  # about as many as one child makes


def test_a_killed_process_leaves_whole_versions_and_no_orphan(tmp_path: Path) -> None:
    root = tmp_path / "data"
    chance = random.Random(7)
    ends = []
    for number in range(ROUNDS):
        calls = chance.randrange(1, CALLS)
        done = subprocess.run(
            [sys.executable, store_child.__file__, str(root), str(number), str(calls)],
            capture_output=True,
            timeout=60,
        )
        ends.append(done.returncode)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        check(root, f"round {number}, killed at call {calls}")
    assert -signal.SIGKILL in ends
    assert store_child.acknowledged(root) - {""}


def test_processes_that_publish_and_collect_at_once_lose_nothing(tmp_path: Path) -> None:
    """All take the same versions in, so that each publishes what another may just be throwing out."""
    root = tmp_path / "data"
    BlobStore(root)
    never = str(1 << 40)
    children = [
        subprocess.Popen([sys.executable, store_child.__file__, str(root), "1", never], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()
    assert len(store_child.acknowledged(root) - {""}) == 4
    check(root, "three at once")


def check(root: Path, when: str) -> None:
    acknowledged = store_child.acknowledged(root) - {""}
    store = BlobStore(root)
    assert all(store.verify(digest) for digest in store.digests()), f"half a version: {when}"
    assert acknowledged <= set(store.digests()), f"lost: {when}"
    store.collect_garbage(acknowledged, grace_s=0)
    assert store.digests() == sorted(acknowledged), when
    assert not list((root / "incoming").iterdir()), f"left behind: {when}"
