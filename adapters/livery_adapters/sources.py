"""Adapters found in a folder: every direct subfolder that holds an adapter is served under its own name.

    folder = FolderSource(Path("adapters"), ingest, registry)
    await folder.scan()       # one look: takes what is whole, records what isn't
    await folder.watch()      # the same for ever, on every change; cancel the task to stop

A subfolder is taken once its files pass every check and have the same digest before and after a quiet moment.
One that is still being copied is "incomplete", a bad one "failed"; both leave an earlier version serving. A
subfolder that is gone retires its name. Unchanged ones (sizes, times and inodes) are not read again, except
after a refusal that may pass, as with a full disk: less and less often. Files are read in worker threads. What
makes an adapter good, and what taking it means, is the business of `ingest`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from pathlib import Path
from typing import NamedTuple

from watchfiles import awatch

from livery_adapters.ingest import WITHDRAWN, CheckedAdapter, Ingest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import AdapterRegistry, UnknownAdapter
from livery_adapters.tensor_file import FILE_NAMES

logger = logging.getLogger(__name__)

SOURCE = "folder"
Signature = tuple[tuple[int, int, int, int] | None, ...]  # size, mtime, ctime (ns) and inode of each file

# Refusals that are about this machine at this moment rather than about the files.
TRANSIENT = frozenset({"activation_failed", "storage_failed", "unreadable"})
LONGEST_WAIT_S = 300.0

_TEMPORARY = (".tmp", ".part", ".partial", "~")
_DEBOUNCE_MS = 400
_TIMEOUT_MS = 2000  # look again this often even without an event: network file systems lose some


class _Retry(NamedTuple):
    """A new try of an unchanged subfolder. `wait` is in seconds, `due` a time of the monotonic clock."""

    wait: float
    due: float


class FolderSource:
    """The adapters below `root`. One task may use it at a time."""

    def __init__(
        self,
        root: Path,
        ingest: Ingest,
        registry: AdapterRegistry,
        *,
        quiet_seconds: float = 0.3,
        retry_seconds: float = 2.0,
        force_polling: bool = False,
    ) -> None:
        """`retry_seconds`: wait before the first new try after a refusal that may pass; each later one doubles it.

        `force_polling` is for file systems without change events. Raises NotADirectoryError.
        """
        if not root.is_dir():
            raise NotADirectoryError(f"the adapter folder {str(root)!r} is not a directory; create it")
        self.root = root
        self._ingest = ingest
        self._registry = registry
        self._quiet_seconds = quiet_seconds
        self._retry_seconds = retry_seconds
        self._force_polling = force_polling
        self._settled: dict[str, Signature] = {}  # how each subfolder looked when it was dealt with
        self._retries: dict[str, _Retry] = {}

    async def watch(self) -> None:
        """Follow the folder until cancelled."""
        events = awatch(
            self.root,
            debounce=_DEBOUNCE_MS,
            rust_timeout=_TIMEOUT_MS,
            yield_on_timeout=True,
            force_polling=self._force_polling or None,
            recursive=True,
        )
        async for _ in events:
            while not await self.scan():
                pass  # every look lasts a quiet moment

    async def scan(self) -> bool:
        """Look once. False when something was still moving, so that another look is due."""
        before = await self._look()
        if before is None:
            return True
        changed = {name: seen for name, seen in before.items() if self._settled.get(name) != seen or self._due(name)}
        missing = self._settled.keys() - before.keys()
        if not changed and not missing:
            return True
        checked = {name: await self._check(name) for name in changed}
        await asyncio.sleep(self._quiet_seconds)
        after = await self._look()
        if after is None:
            return True
        for name in missing - after.keys():
            self._retire(name)
        moving = [name for name, seen in changed.items() if after.get(name) != seen]
        for name, seen in changed.items():
            if name not in moving and not await self._settle(name, seen, checked[name]):
                moving.append(name)
        return not moving and after.keys() == before.keys()

    async def _look(self) -> dict[str, Signature] | None:
        """What is there now. None when the folder can't be listed: that is no reason to drop anything."""
        try:
            return await asyncio.to_thread(_signatures, self.root)
        except OSError as error:
            logger.warning("the adapter folder can't be listed (%s); what is served stays", error.strerror)
            return None

    def _due(self, name: str) -> bool:
        retry = self._retries.get(name)
        return retry is not None and retry.due <= time.monotonic()

    async def _check(self, name: str) -> CheckedAdapter | AdapterRefused:
        try:
            return await self._ingest.check(self.root / name)
        except AdapterRefused as refused:
            return refused

    async def _settle(self, name: str, seen: Signature, checked: CheckedAdapter | AdapterRefused) -> bool:
        """Take or refuse a subfolder that stood still. False when its bytes moved all the same."""
        try:
            if isinstance(checked, AdapterRefused):
                raise checked
            version = await self._ingest.take(name, self.root / name, SOURCE, checked=checked)
            logger.info("adapter %s is live as %s", name, version.digest[:12])
        except AdapterRefused as refused:
            if refused.code != WITHDRAWN:
                logger.warning("adapter %s is not taken (%s): %s", printable(name), refused.code, refused.message)
                self._registry.fail(printable(name), refused.message, SOURCE, code=refused.code)
            if refused.code == "incomplete" and not isinstance(checked, AdapterRefused):
                return False
            if refused.code in TRANSIENT:
                self._retry_later(name, seen)
                return True
        self._settled[name] = seen
        self._retries.pop(name, None)
        return True

    def _retry_later(self, name: str, seen: Signature) -> None:
        before = self._retries.get(name)
        wait = self._retry_seconds
        if before is not None and self._settled.get(name) == seen:  # the very same files again
            wait = min(2 * before.wait, LONGEST_WAIT_S)
        self._settled[name] = seen
        self._retries[name] = _Retry(wait, time.monotonic() + wait)

    def _retire(self, name: str) -> None:
        del self._settled[name]
        self._retries.pop(name, None)
        try:
            record = self._registry.get(printable(name))
        except UnknownAdapter:
            return
        if record.source == SOURCE:
            logger.info("adapter %s is gone from the folder: no new requests, those under way finish", record.name)
            self._registry.retire(record.name)


def printable(name: str) -> str:
    """A folder's name as it may appear in answers and logs, whatever bytes it is made of."""
    if name.isprintable() and len(name) <= 128:
        return name
    return name.encode("unicode_escape").decode("ascii")[:128]


def _signatures(root: Path) -> dict[str, Signature]:
    found = {}
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith(_TEMPORARY) or not _is_directory(entry):
                continue
            signature = tuple(_signature(os.path.join(entry.path, name)) for name in FILE_NAMES)
            if any(signature):
                found[entry.name] = signature
    return found


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop: one bad entry must not hide the others
        return False


def _signature(path: str) -> tuple[int, int, int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISDIR(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
