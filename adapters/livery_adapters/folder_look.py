"""How a folder of adapters looks: what is there, and what can't be looked at now, which is something else than gone."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from livery_adapters.beside import BESIDE_NAMES
from livery_adapters.tensor_file import FILE_NAMES

Signature = tuple[tuple[int, int, int, int] | None, ...]  # size, mtime, ctime (ns) and inode of each file

_TEMPORARY = (".tmp", ".part", ".partial", "~")
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # what says that there is no such file, now or ever


class Found(NamedTuple):
    """One look: how each adapter looks, why a subfolder couldn't be looked at, and the root's device and inode."""

    seen: dict[str, Signature]
    unseen: dict[str, OSError]
    place: tuple[int, int]


def signatures(root: Path, is_tenant: Callable[[str], bool]) -> Found:
    """How each adapter looks, by its name. Raises OSError when the root or a tenant's folder can't be listed."""
    status = os.stat(root)
    found = Found({}, {}, (status.st_dev, status.st_ino))
    for name in _folders(root, found.unseen):
        within = [name]
        if is_tenant(name):
            unseen: dict[str, OSError] = {}
            within += [f"{name}/{inner}" for inner in _folders(root / name, unseen)]
            found.unseen.update({f"{name}/{inner}": error for inner, error in unseen.items()})
        for adapter in within:
            try:
                signature = _signature_of(root / adapter)
            except OSError as error:
                found.unseen[adapter] = error
            else:
                if any(signature[: len(FILE_NAMES)]):
                    found.seen[adapter] = signature
    return found


def _folders(root: Path, unseen: dict[str, OSError]) -> list[str]:
    """The names of its subfolders; `unseen` gets those that may be one."""
    with os.scandir(root) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".") and not entry.name.endswith(_TEMPORARY)]
    folders = []
    for entry in shown:
        try:
            if entry.is_dir():
                folders.append(entry.name)
        except OSError as error:  # one bad entry must not hide the others
            if error.errno not in _ABSENT:
                unseen[entry.name] = error
    return folders


def looks(directory: Path) -> Signature | None:
    """How it looks, None where that can't be told now."""
    try:
        return _signature_of(directory)
    except OSError:
        return None


def _signature_of(directory: Path) -> Signature:
    """Raises OSError where a file can't be looked at."""
    return tuple(_signature(os.path.join(directory, name)) for name in (*FILE_NAMES, *BESIDE_NAMES))


def _signature(path: str) -> tuple[int, int, int, int] | None:
    """None where there is no such file. Raises OSError where nobody can tell, as without permission or over NFS."""
    try:
        status = os.stat(path)  # of what a link leads to: Kubernetes swaps links when it changes a volume
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    if stat.S_ISDIR(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
