"""What this process may use of the machine it runs on: cores and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes of the host's memory, and how many of them a process may still take."""

    total: int
    available: int


def cores() -> int:
    """The cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> Memory:
    """What Linux says; elsewhere what is installed, half of which is a safe guess at what is free."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        return Memory(*(int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")))
    except (OSError, LookupError):
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(installed, installed // 2)
