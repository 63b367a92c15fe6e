"""What the processes of this process's Ray take of the processors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

RAYS = ("raylet", "gcs_server", "haproxy")  # programs, beside those that call themselves ray::...
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Taken:
    """CPU seconds of each process so far, replicas and proxies among them, engines not; and what it is."""

    seconds: dict[int, float]
    names: dict[int, str]

    @classmethod
    def now(cls) -> Taken:
        found: dict[int, tuple[int, str, float]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    title = (entry / "cmdline").read_bytes().partition(b"\0")[0].decode()
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                found[int(entry.name)] = int(fields[1]), _name(title), TICK_S * (int(fields[11]) + int(fields[12]))
        parents = {pid: parent for pid, (parent, _, _) in found.items()}
        own = {pid: (name, spent) for pid, (_, name, spent) in found.items() if name and _is_mine(pid, parents)}
        return cls({pid: spent for pid, (_, spent) in own.items()}, {pid: name for pid, (name, _) in own.items()})

    def since(self, before: Taken) -> dict[str, float]:
        """What was taken in between, by what took it."""
        total: dict[str, float] = {}
        for pid, seconds in self.seconds.items():
            name = self.names[pid]
            total[name] = total.get(name, 0.0) + seconds - before.seconds.get(pid, 0.0)
        return total


def _name(title: str) -> str:
    """Of a process of Ray's; nothing for any other's title."""
    if title.startswith("ray::"):
        return title.removeprefix("ray::").partition(".")[0].rpartition(":")[2]  # without what it is busy with
    program = title.rpartition("/")[2]
    return program if program in RAYS else ""


def _is_mine(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = parents.get(pid, 0)
    return False
