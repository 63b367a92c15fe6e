"""Threads beside the event loop, all taken: who needs one waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from livery.beside import SharedThreads


@contextmanager
def taken(turns: SharedThreads) -> Iterator[None]:
    """All threads of these are busy."""
    threads = turns._threads._max_workers
    busy, go_on = threading.Barrier(threads + 1), threading.Event()

    def hold() -> None:
        busy.wait(30)
        go_on.wait(60)

    held = [turns.submit("nobody", hold) for _ in range(threads)]
    busy.wait(30)
    try:
        yield
    finally:
        go_on.set()
        for one in held:
            one.result(30)
