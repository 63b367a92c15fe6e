"""Threads whose work can wait: what is running comes before what is to run soon."""

from __future__ import annotations

import os
import sys
import threading

NICENESS = 10


def step_back() -> None:
    """Give way to other threads where both want a core. For threads of one's own: there is no way back."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
