"""How a process of Livery begins, and how it ends while it does."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CLEANING_S = 1.5  # what a process that is told to stop may still clean up; a download's threads can take minutes


@contextmanager
def importing() -> Iterator[None]:
    """Import much at once: what is imported stays, so looking through it for garbage is time lost, a sixth of all.

    Collections that come later pass it over too (gc.freeze).
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def heed_sigterm() -> None:
    """Let SIGTERM end this process, with status 143, whatever its main thread is in the middle of.

    Without it the first process of a container would not end at all: from that one the kernel keeps every signal for
    which there is no handler, but SIGKILL.
    """
    signal.signal(signal.SIGTERM, _end)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """As `heed_sigterm`, within this block, for as long as nobody sets another handler."""
    before = signal.getsignal(signal.SIGTERM)
    heed_sigterm()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off the cleaning up
    status = 128 + number
    timer = threading.Timer(CLEANING_S, os._exit, (status,))
    timer.daemon = True
    timer.start()
    raise SystemExit(status)
