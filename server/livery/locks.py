"""The right to something that one process has at a time, and that ends with it at the latest."""

from __future__ import annotations

import fcntl
import os


def locked(handle: int) -> int | None:
    """The handle of a file or directory, locked until it is closed; None, and closed, where another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
