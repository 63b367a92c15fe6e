"""A process that takes adapters into a store until it is killed at a chosen call; run as a program.

    python store_child.py ROOT SEED CALLS

Each adapter's digest is appended to ROOT.acknowledged before the context ends, as a registry would commit its row.
At the CALLS-th call of a C function (every system call is one) the process kills itself as `kill -9` would.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME


def acknowledged(root: Path) -> set[str]:
    """The digests written down in full; a line cut short was never acknowledged."""
    log = root.with_suffix(".acknowledged")
    text = log.read_text() if log.exists() else ""
    return {line.strip() for line in text.splitlines(keepends=True) if line.endswith("\n")}


def take(store: BlobStore, log: int, content: random.Random) -> None:
    with store.incoming() as incoming:
        incoming.write(CONFIG_NAME, b"{}")
        for _ in range(content.randrange(1, 5)):
            incoming.write(WEIGHTS_NAME, content.randbytes(content.randrange(1, 9000)))
        digest = incoming.seal()
        incoming.publish()
        os.write(log, f"{digest}\n".encode())
        os.fsync(log)


def main(root: Path, seed: int, calls: int) -> None:
    left = calls

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal left
        if event == "c_call":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    log = os.open(root.with_suffix(".acknowledged"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, b"\n")  # ends a line that an earlier process left half-written
    sys.setprofile(count)
    store = BlobStore(root)
    for number in range(4):
        # Two seeds share contents, so that versions held already are published again.
        take(store, log, random.Random(seed // 2 * 10 + number))
        if number % 2:
            store.collect_garbage(lambda: acknowledged(root), grace_s=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
