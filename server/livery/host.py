"""What this process may use of the machine it runs on: cores and memory, in a container those of its limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


class Memory(NamedTuple):
    """Bytes of the host's memory, and how many of them a process may still take."""

    total: int
    available: int


def cores(root: Path = ROOT) -> int:
    """The cores this process may use: those it is kept to, and no more than a limit of processor time makes up.

    `root` is where /proc and /sys are. A container's limit (`limits.cpu`, `--cpus`) hides no core: threads on all of
    them would use up its time early in each period, and then all wait.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(root):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            seen = min(seen, max(1, -(-int(quota) // int(period))))
    return seen


def memory(root: Path = ROOT) -> Memory:
    """What Linux says, within the limits of a container; elsewhere what is installed, half of which is a safe guess at
    what is free.
    """
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, LookupError):
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(installed, installed // 2)
    for group in _groups(root):
        limit, used = (_read(group / name).strip() for name in ("memory.max", "memory.current"))
        if limit.isdigit() and used.isdigit():
            total = min(total, int(limit))
            available = min(available, max(0, int(limit) - int(used) + _reclaimable(group)))
    return Memory(total, available)


def _reclaimable(group: Path) -> int:
    """Bytes of files read long ago, which count as used and give way to whoever needs memory."""
    stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    return int(stat.get("inactive_file", "0"))


def _groups(root: Path) -> list[Path]:
    """The control groups (version 2) that this process is in, its own first; limits of each hold.

    A container sees its own as the root of them all.
    """
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            own = top / line.removeprefix("0::/")
            return [folder for folder in (own, *own.parents) if folder == top or top in folder.parents]
    return []


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # no such limit, or no such system
        return ""
