"""Adapters found in a folder: every direct subfolder that holds an adapter is served under its own name, and those
in a subfolder with a tenant's name belong to that tenant: `acme/pirate`.

    folder = FolderSource(Path("adapters"), library, changing, follower=str(uuid4()))
    await folder.start()      # what was dealt with by an earlier run
    await folder.scan()       # one look: takes what is whole, records what isn't
    await folder.watch()      # the same for ever, on every change; cancel the task to stop

A subfolder is taken once it has stood still for a quiet moment, and only if it still looks the same when its
files have been copied. One that is half there is "incomplete", a bad one "failed"; both leave an earlier version
serving. A subfolder that is gone retires its name, until it is back; one that can't be looked at isn't gone.
Unchanged ones (sizes, times and inodes) are not read again, not even by the next run, except after a refusal that may
pass, as with a full disk, a name that is somebody else's or a registry that is down: less and less often. What makes an
adapter good, and what taking it means, is the business of `library`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

from watchfiles import awatch

from livery_adapters.fetching import copy_directory
from livery_adapters.folder_look import Signature, looks, signatures
from livery_adapters.incoming import Incoming
from livery_adapters.library import AdapterLibrary, Intake
from livery_adapters.names import FOLDER
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import (
    OPERATOR_TENANT,
    Given,
    RegistryError,
    RegistryUnavailable,
)

logger = logging.getLogger(__name__)

# Refusals that are about this machine at this moment rather than about the files.
_HERE = ("activation_failed", "format_untried", "storage_full", "storage_failed", "unreadable")
_STORED = ("blobs_unavailable", "blobs_of_another", "blobs_elsewhere")
TRANSIENT = frozenset((*_HERE, *_STORED))
LONGEST_WAIT_S = 300.0
LOSSES = 2  # of what proves adapters, under the same files of one, before that one isn't tried any more

_DEBOUNCE_MS = 400
_TIMEOUT_MS = 2000  # look again this often even without an event: network file systems lose some


class _Retry(NamedTuple):
    """A new try of an unchanged subfolder. `wait` is in seconds, `due` a time of the monotonic clock."""

    wait: float
    due: float


async def _nothing() -> None:
    """Nobody can be lost."""


class FolderSource:
    """The adapters below `root`. One task may use it at a time."""

    def __init__(
        self,
        root: Path,
        library: AdapterLibrary,
        changing: Callable[[str, str], AbstractAsyncContextManager[None]],
        *,
        follower: str,
        quiet_seconds: float = 0.3,
        retry_seconds: float = 2.0,
        force_polling: bool = False,
        is_tenant: Callable[[str], bool] = lambda _: False,
        check: Callable[[], Awaitable[object]] = _nothing,
    ) -> None:
        """`changing` goes around every change of a name, given that (printable) and its owner.

        `is_tenant`: there is one of a name. `check` raises while nobody can prove adapters, as when an engine is lost:
        then a look ends with that, and one who was being proven meanwhile twice isn't tried again until it changes.

        `follower` says whose folder it is, the same after each restart: other servers of the registry may follow
        folders of their own, and nobody retires but what his own gave.
        `retry_seconds`: wait before the first new try after a refusal that may pass; each later one doubles it.
        `force_polling` is for file systems without change events. Raises NotADirectoryError.
        """
        if not root.is_dir():
            raise NotADirectoryError(f"the adapter folder {str(root)!r} is not a directory; create it")
        self.root = root
        self._library = library
        self._registry = library.registry
        self._changing = changing
        self._quiet_seconds = quiet_seconds
        self._retry_seconds = retry_seconds
        self._force_polling = force_polling
        self._is_tenant = is_tenant
        self._follower = follower
        self._before: dict[str, Given] = {}  # what an earlier run dealt with, until it is compared with what is there
        self._told_empty = False
        self._unseen: frozenset[str] = frozenset()  # subfolders that the last look couldn't look at
        self._place: tuple[int, int] | None = None  # device and inode of the root when it last held something
        self._settled: dict[str, Signature] = {}  # how each subfolder looked when it was dealt with
        self._retries: dict[str, _Retry] = {}
        self._check = check
        self._losses: dict[str, tuple[Signature, int]] = {}

    async def start(self) -> None:
        """Learn what the registry holds of this folder."""
        self._before = await asyncio.to_thread(self._registry.given, self._follower)

    async def watch(self) -> None:
        """Follow the folder until cancelled."""
        async for _ in self._changes():
            while not await self.scan():
                pass  # every look lasts a quiet moment

    async def _changes(self) -> AsyncIterator[None]:
        """Whenever something may have changed, and every two seconds."""
        while True:
            events = awatch(
                self.root,
                debounce=_DEBOUNCE_MS,
                rust_timeout=_TIMEOUT_MS,
                yield_on_timeout=True,
                force_polling=self._force_polling or None,
                recursive=True,
            )
            try:
                async for _ in events:
                    yield
            except* RuntimeError as failed:  # of a name that isn't UTF-8 it can't tell
                logger.debug("watching %s begins anew", self.root, exc_info=failed)
            yield
            await asyncio.sleep(_DEBOUNCE_MS / 1000)

    async def scan(self) -> bool:
        """Look once. False when something was still moving, so that another look is due. Raises what `check` does."""
        before = await self._look()
        if before is None:
            return True
        await self._compare_with_registry(before)
        changed = {
            name: seen
            for name, seen in before.items()
            if self._settled.get(name) != seen or (self._due(name) and not self._out_of_sight(name))
        }
        missing = self._settled.keys() - before.keys()
        if not changed and not missing:
            return True
        await asyncio.sleep(self._quiet_seconds)
        after = await self._look()
        if after is None:
            return True
        for name in missing - after.keys():
            await self._withdraw(name)
        moving = [name for name, seen in changed.items() if after.get(name) != seen]
        for name, seen in sorted(changed.items(), key=lambda one: one[0] in self._losses):  # the others come first
            if name not in moving and not await self._settle(name, seen):
                moving.append(name)
        return not moving and after.keys() == before.keys()

    async def _compare_with_registry(self, now: dict[str, Signature]) -> None:
        """On the first look: what is as an earlier run left it is dealt with; what is gone since is retired.

        A folder with nothing at all may be a volume that isn't mounted yet: that look comes when there is something.
        """
        unseen = {name: given for name, given in self._before.items() if name not in now and self._out_of_sight(name)}
        there = now.keys() | unseen.keys()
        gone = [name for name, given in self._before.items() if given.claimed and name not in there]
        if gone and not now:
            self._tell_empty(sorted(name for name in gone if self._before[name].listed))
            return
        same = [
            name
            for name in now.keys() & self._before.keys()
            if self._before[name].origin == self._origin(name, now[name])
        ]
        if unclaimed := [name for name in same if not self._before[name].claimed]:
            await asyncio.to_thread(self._registry.claim, unclaimed, self._follower)
        self._settled |= dict.fromkeys(gone, ()) | {name: now[name] for name in same}
        self._before = unseen

    def _tell_empty(self, names: list[str]) -> None:
        if names and not self._told_empty:
            logger.warning(
                "the adapter folder %s holds no adapter, and %d that it gave are there (%s): they stay until it holds "
                "one. Is its volume mounted? What is to go, take out with `livery adapters rm NAME`",
                self.root,
                len(names),
                ", ".join(names[:5]) + ", …" * (len(names) > 5),
            )
            self._told_empty = True

    async def _look(self) -> dict[str, Signature] | None:
        """What is there now, with what can't be looked at as it was dealt with last.

        None when the folder can't be listed, and when all of it went with the root itself, as a volume that is
        unmounted does: neither is a reason to drop anything.
        """
        try:
            found = await asyncio.to_thread(signatures, self.root, self._is_tenant)
        except OSError as error:
            logger.warning(
                "the adapter folder can't be listed at %s (%s); what is served stays", error.filename, error.strerror
            )
            return None
        for name in found.unseen.keys() - self._unseen:
            logger.warning(
                "subfolder %s of the adapter folder can't be looked at (%s); what it gave stays as it is",
                printable(name),
                found.unseen[name].strerror,
            )
        self._unseen = frozenset(found.unseen)
        now = {name: seen for name, seen in self._settled.items() if self._out_of_sight(name)} | found.seen
        if now:
            self._place, self._told_empty = found.place, False
        elif self._settled and self._place not in (None, found.place):
            self._tell_empty(sorted(printable(name) for name in self._settled))
            return None
        return now

    def _out_of_sight(self, name: str) -> bool:
        """Whether the last look couldn't look at its subfolder, or at its tenant's."""
        return not self._unseen.isdisjoint((name, name.partition("/")[0]))

    def _due(self, name: str) -> bool:
        retry = self._retries.get(name)
        return retry is not None and retry.due <= time.monotonic()

    async def _settle(self, name: str, seen: Signature) -> bool:
        """Take or refuse a subfolder that stood still. False when it moved all the same. Raises what `check` does."""
        await self._check()
        try:
            return await self._take(name, seen)
        except RegistryUnavailable as error:
            logger.warning("adapter %s of the folder is not taken now: %s", printable(name), error)
            self._retry_later(name, seen)
        except Exception as error:  # noqa: BLE001  (the others are taken whatever one of them comes upon)
            await self._surprised(name, seen, error)
        return True

    async def _surprised(self, name: str, seen: Signature, error: Exception) -> None:
        """Something that no refusal says came of taking a subfolder. Raises what `check` does."""
        try:
            await self._check()
        except Exception:
            await self._lost(name, seen)
            raise
        logger.error("adapter %s of the folder is not taken; it is tried again", printable(name), exc_info=error)
        self._retry_later(name, seen)
        told = "taking it in failed in a way that nobody foresaw; the server's log says how. It is tried again"
        await self._fails(name, seen, "unexpected", told)

    async def _lost(self, name: str, seen: Signature) -> None:
        """Who proves was lost over a subfolder: once may be chance."""
        before, count = self._losses.get(name, (seen, 0))
        count = count + 1 if before == seen else 1
        self._losses[name] = seen, count
        if count < LOSSES:
            return
        del self._losses[name]
        self._retries.pop(name, None)
        self._settled[name] = seen
        told = (
            f"the engine was lost {LOSSES} times while it tried this adapter, so it isn't tried any more; the server's "
            "log says how the engine ended. Copy it again, or restart the server, to have it tried anew"
        )
        await self._fails(name, seen, "engine_lost", told)

    async def _fails(self, name: str, seen: Signature, code: str, message: str) -> None:
        """As `_refused`; a registry that doesn't take it only leaves a line in the log."""
        try:
            await self._refused(name, self._origin(name, seen), code, message)
        except RegistryError as error:
            logger.warning("that adapter %s failed is not recorded: %s", printable(name), error)

    async def _take(self, name: str, seen: Signature) -> bool:
        """See `_settle`. Raises RegistryUnavailable."""
        origin = self._origin(name, seen)

        async def fill(incoming: Incoming) -> str:
            await asyncio.to_thread(copy_directory, self.root / name, incoming, [self.root])
            if (await asyncio.to_thread(looks, self.root / name)) != seen:
                raise AdapterRefused(
                    "incomplete", f"the files of {name!r} changed while they were read; it is tried again"
                )
            return origin

        try:
            owner = _owner(name)
            async with self._changing(printable(name), owner):  # other processes are told of it, in UTF-8
                record = await self._library.add(name, fill, Intake(FOLDER, owner=owner, follower=self._follower))
        except AdapterRefused as refused:
            if await asyncio.to_thread(looks, self.root / name) != seen:
                return False
            await self._refused(name, origin, refused.code, refused.message)
            if refused.code in TRANSIENT:
                self._retry_later(name, seen)
                return True
        except RegistryUnavailable:
            raise
        except RegistryError as error:
            again = name in self._retries and self._settled.get(name) == seen  # it may stay so for long
            level = logging.DEBUG if again else logging.WARNING
            logger.log(level, "adapter %s of the folder is not taken: %s", name, error)
            self._retry_later(name, seen)
            return True
        else:
            if record.active is not None and record.state != "retired":
                logger.info("adapter %s is live as %s", name, record.active.facts.digest[:12])
            else:
                logger.info("adapter %s was deleted and its files are the same: it stays deleted", name)
        self._settled[name] = seen
        self._retries.pop(name, None)
        self._losses.pop(name, None)
        return True

    async def _refused(self, name: str, origin: str, code: str, message: str) -> None:
        shown = printable(name)
        logger.warning("adapter %s is not taken (%s): %s", shown, code, message)
        owner = _owner(name)
        async with self._changing(shown, owner):
            await asyncio.to_thread(
                self._registry.fail,
                shown,
                code=code,
                message=message,
                source=FOLDER,
                origin=origin,
                owner=owner,
                follower=self._follower,
            )

    def _origin(self, name: str, seen: Signature) -> str:
        """How a subfolder looked, for the base it was checked against, in a few letters."""
        looks = hashlib.sha256(repr((seen, self._library.base.digest)).encode()).hexdigest()[:16]
        return f"{printable(name)}#{looks}"

    def _retry_later(self, name: str, seen: Signature) -> None:
        before = self._retries.get(name)
        wait = self._retry_seconds
        if before is not None and self._settled.get(name) == seen:  # the very same files again
            wait = min(2 * before.wait, LONGEST_WAIT_S)
        self._settled[name] = seen
        self._retries[name] = _Retry(wait, time.monotonic() + wait)

    async def _withdraw(self, name: str) -> None:
        """Take back what the folder gave as a subfolder that is gone; what fails is tried at the next look."""
        shown = printable(name)
        try:
            async with self._changing(shown, _owner(name)):
                retired = await asyncio.to_thread(self._registry.withdraw, shown, self._follower)
        except RegistryUnavailable as error:
            logger.warning("adapter %s is gone from the folder and not retired yet: %s", shown, error)
            return
        if retired:
            logger.info("adapter %s is gone from the folder: no new requests, those under way finish", shown)
        self._retries.pop(name, None)
        del self._settled[name]


def printable(name: str) -> str:
    """A folder's name as it may appear in answers and logs, whatever bytes it is made of."""
    if name.isprintable() and len(name) <= 128:
        return name
    return name.encode("unicode_escape").decode("ascii")[:128]


def _owner(name: str) -> str:
    """Whose the adapter of a subfolder is: one within another is a tenant's."""
    tenant, inside, _ = name.partition("/")
    return tenant if inside else OPERATOR_TENANT
