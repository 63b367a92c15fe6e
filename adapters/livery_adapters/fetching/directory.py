"""Adapter directories as operators have them: links are followed, but never out of what is allowed.

Kubernetes mounts a volume's files as links through `..data`, the Hugging Face cache keeps snapshots as links to
blobs. So the directory and its two files may be links, as long as everything they lead to is below one of the
allowed roots. Each path is resolved first and then opened step by step from its root without following anything:
whoever swaps a part for a link in between makes the opening fail, not lead elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from livery_adapters.beside import BESIDE_LIMITS, is_wanted
from livery_adapters.fetching.interrupt import Sink
from livery_adapters.profile import PROFILE_NAME
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME, kind_of, missing_file, not_regular
from livery_adapters.weightless import says_none

# Only a name to walk through is needed of a directory, not its listing.
_WALK = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for a writer.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_SHORT = 4096  # bytes that a configuration without settings fits into


def copy_directory(directory: Path, incoming: Sink, roots: Sequence[Path]) -> None:
    """Take both files of a directory, and those beside them that say how it is used; links are followed as far as
    they stay below `roots`.

    Raises AdapterRefused: outside_root, missing_config, missing_weights, pickle_only, not_regular, unreadable,
    incomplete (the files changed meanwhile), and what `Incoming.read` raises.
    """
    with open_adapter_files(directory, roots) as files:
        for name, stream in files.items():
            incoming.read(name, stream, os.fstat(stream.fileno()).st_size)


@contextmanager
def open_adapter_files(directory: Path, roots: Sequence[Path]) -> Iterator[Mapping[str, BinaryIO]]:
    """Both files of a directory and what lies beside them (`livery_adapters.beside`), open for reading, by name.

    All are regular files below one of `roots`.

    At the end of the context the directory must still lead to the very same, unchanged files; otherwise what was
    read may be half of one state and half of another, and is refused as incomplete. Raises AdapterRefused as
    `copy_directory` does.
    """
    allowed = [Path(os.path.realpath(root)) for root in roots]
    with ExitStack() as held:
        files: dict[str, BinaryIO] = {}
        for name in FILE_NAMES:
            if name == WEIGHTS_NAME and _has_none(directory, files[CONFIG_NAME]):
                continue
            files[name] = held.enter_context(os.fdopen(_open(directory, name, allowed), "rb"))
        for name in _beside(directory):
            try:
                files[name] = held.enter_context(os.fdopen(_open(directory, name, allowed), "rb"))
            except AdapterRefused:
                if name == PROFILE_NAME:  # the others are only looked at
                    raise
        before = {name: _signature(os.fstat(stream.fileno())) for name, stream in files.items()}
        yield files
        for name, stream in files.items():
            if not before[name] == _signature(os.fstat(stream.fileno())) == _signature_of(directory / name):
                raise AdapterRefused(
                    "incomplete", f"the files of {directory.name!r} changed while they were read; it is tried again"
                )


def _has_none(directory: Path, config: BinaryIO) -> bool:
    """Whether the configuration is that of an adapter without weights, and there are none."""
    if os.path.lexists(directory / WEIGHTS_NAME):
        return False
    return says_none(os.pread(config.fileno(), _SHORT, 0))


def _beside(directory: Path) -> list[str]:
    """What lies there beside an adapter's files and is to be taken along."""
    sizes = {name: _size(directory / name) for name in BESIDE_LIMITS if os.path.lexists(directory / name)}
    return [name for name, size in sizes.items() if is_wanted(name, size)]


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _open(directory: Path, name: str, roots: Sequence[Path]) -> int:
    """A descriptor of one file. Raises AdapterRefused."""
    try:
        fd = _open_below(*_place(directory, name, roots))
    except (FileNotFoundError, NotADirectoryError):
        raise missing_file(directory, name) from None
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None)
        if code in (errno.ELOOP, errno.ENXIO):
            raise not_regular(name, _found(directory / name)) from None
        reason = os.strerror(code) if code else "no usable path"
        raise AdapterRefused(
            "unreadable", f"{name} of {directory.name!r} can't be read: {reason}; fix its permissions"
        ) from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise not_regular(name, kind_of(mode))
    return fd


def _found(path: Path) -> str:
    """What lies at a path that could not be opened, for a message: a socket, or a link that leads to itself."""
    try:
        return kind_of(os.lstat(path).st_mode)
    except OSError:
        return ""


def _place(directory: Path, name: str, roots: Sequence[Path]) -> tuple[Path, Path]:
    """Where the file really is: an allowed root and the path below it. Raises AdapterRefused (outside_root)."""
    real = Path(os.path.realpath(directory / name))
    for root in roots:
        if real.is_relative_to(root) and real != root:
            return root, real.relative_to(root)
    raise AdapterRefused(
        "outside_root",
        f"{name} of {directory.name!r} is, links followed, outside the folders this server may read; copy the real "
        "file there (for example with cp -L), or have the operator allow its folder with --allow-source",
    )


def _open_below(root: Path, below: Path) -> int:
    """Open a file step by step, following nothing. Raises OSError (ELOOP or ENOTDIR for a link)."""
    folder = os.open(root, _WALK)
    try:
        for part in below.parts[:-1]:
            deeper = os.open(part, _WALK, dir_fd=folder)
            os.close(folder)
            folder = deeper
        return os.open(below.name, _READ, dir_fd=folder)
    finally:
        os.close(folder)


def _signature_of(path: Path) -> tuple[int, ...] | None:
    try:
        return _signature(os.stat(path))
    except OSError:
        return None


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
