"""Temporary directories that outlive no process for long: who makes one removes those whose makers were killed.

scratch = Scratch("livery-vllm-")
...
scratch.remove()
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from livery.locks import locked


class Scratch:
    """A new directory of this process, locked as long as that lives or until it is removed. Raises OSError."""

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        """`prefix` says whose such directories are; `parent` is the system's place for them unless given."""
        parent = parent or Path(tempfile.gettempdir())
        self.path, self._handle = _locked(prefix, parent)
        for other in parent.glob(f"{prefix}*"):
            if other != self.path and (handle := _lock(other)) is not None:
                shutil.rmtree(other, ignore_errors=True)
                os.close(handle)

    def remove(self) -> None:
        """With all that is in it. Blocks."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._handle)


def _locked(prefix: str, parent: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        handle = _lock(path)
        if handle is not None and path.exists():
            return path, handle
        # Another process took it for one that was left behind, before it was locked.
        if handle is not None:
            os.close(handle)


def _lock(path: Path) -> int | None:
    """A handle that keeps the directory locked; None where another process has it, or it isn't ours to open."""
    try:
        return locked(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        return None
