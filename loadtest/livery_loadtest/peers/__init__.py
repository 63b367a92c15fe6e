"""Servers of others to compare with, each in an environment of its own and at its best settings."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

MARKER = ".complete"
TELLING = ("Collecting", "Downloading", "Building", "Installing", "Using cached", "Requirement already", "--", "[")
CPU_INDEX = "If no CPU build of torch was found, name PyTorch's CPU index in PIP_EXTRA_INDEX_URL."


class EnvironmentFailed(Exception):
    """The peer's environment could not be built; the message has the last lines of what failed and the remedy."""


def peers_folder() -> Path:
    """Where peers are installed unless told otherwise: below $LIVERY_CACHE or the user's cache folder."""
    if configured := os.environ.get("LIVERY_CACHE"):
        return Path(configured).expanduser() / "peers"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "livery" / "peers"


def telling_lines(command: Sequence[str], remedy: str = CPU_INDEX) -> Iterator[str]:
    """Run a command to its end; yields the lines that say what it is doing. Raises EnvironmentFailed."""
    last: deque[str] = deque(maxlen=10)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip())
            if line.lstrip().startswith(TELLING):
                yield line.strip()
    if process.returncode:
        raise EnvironmentFailed(
            f"{' '.join(command)} ended with code {process.returncode}:\n  " + "\n  ".join(last) + f"\n{remedy}"
        )
