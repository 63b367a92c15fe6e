"""Whether what a command is to write at its end can be written: found out before the work, not after hours of it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Unwritable(ValueError):
    """A file or folder can't be written; the message names the option, the path and the remedy."""


def check_file(option: str, file: Path | None) -> None:
    """Makes its folder; what is in the file stays, and where there is none, none is left. Raises Unwritable."""
    if file is None:
        return
    with told_as(option, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        file.open("ab").close()
        if new:
            file.unlink()


def check_folder(option: str, folder: Path | None) -> None:
    """Makes the folder. Raises Unwritable."""
    if folder is None:
        return
    with told_as(option, folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        os.unlink(name)


@contextmanager
def told_as(option: str, path: Path) -> Iterator[None]:
    """Around writing what an option names, where a disk may be full by then. Raises Unwritable."""
    try:
        yield
    except OSError as error:
        # A folder that is to be made, and is a file.
        why = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror or error
        raise Unwritable(f"{option} {path} can't be written: {why}; name another place") from None
