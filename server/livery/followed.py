"""Following the operator's adapter folder for as long as the server lives; one server per data folder does."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from livery.data_folder import DataFolder, DataFolderUnusable
from livery.engine.base import EngineDead, EngineError, EngineRestarting
from livery.served import ServedAdapters
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import RegistryError, RegistryUnavailable
from livery_adapters.sources import FolderSource

log = logging.getLogger("livery.adapters")

# What one adapter, or a database that is away for a while, may raise: neither is a reason to follow no longer, and a
# follower that ended would cost the server its readiness.
WATCH_ERRORS = (
    OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, EngineError, AdapterRefused,
    RegistryError, SQLAlchemyError, DataFolderUnusable,
)  # fmt: skip
WATCH_AGAIN_S = 2.0


class FollowedFolder:
    """The folder's adapters, taken in and followed. Use from one event loop."""

    def __init__(
        self,
        root: Path,
        data: DataFolder,
        adapters: ServedAdapters,
        *,
        check: Callable[[], Awaitable[object]],
        poll: bool = False,
        is_tenant: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`check` raises while the engine is lost. `poll`: look instead of waiting for change events.

        Raises NotADirectoryError, DataFolderUnusable."""
        self._data = data
        self._source = FolderSource(
            root,
            adapters.library,
            adapters.changing,
            follower=data.follower(),
            force_polling=poll,
            is_tenant=is_tenant,
            check=check,
        )
        self._handle: int | None = None
        self._vitals = adapters.vitals

    async def start(self) -> None:
        """Take what the folder holds and follow it from then on, or wait for the server that does to end."""
        self._handle = self._data.try_to_follow()
        if self._handle is None:
            log.info("another server of this data folder follows the adapter folder")
        else:
            await self._begin()
        self._vitals.run("folder-follower", self._watch())

    async def stop(self) -> None:
        await self._vitals.stop("folder-follower")
        self._release()

    def _release(self) -> None:
        """Let another server of the data folder follow."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    async def _begin(self) -> None:
        await self._source.start()
        with suppress(EngineRestarting):  # the watcher looks again
            await self._source.scan()

    async def _take_over(self) -> None:
        """Wait for the right to follow and look at the folder; a failure gives the right back."""
        while self._handle is None:
            await asyncio.sleep(WATCH_AGAIN_S)
            self._handle = self._data.try_to_follow()
            if self._handle is not None:
                try:
                    await self._begin()
                except BaseException:
                    self._release()
                    raise
                log.info("this server follows the adapter folder from now on")

    async def _watch(self) -> None:
        """Follow the folder, or wait for the right to, while the engine lives."""
        while True:
            try:
                await self._take_over()
                await self._source.watch()
            except EngineDead as dead:
                log.error("the adapter folder is no longer followed: %s", dead)
                self._release()
                return
            except EngineRestarting:
                log.warning("the adapter folder is looked at again when the engine is back")
                await asyncio.sleep(WATCH_AGAIN_S)
            except RegistryUnavailable as error:
                log.warning("the adapter folder is looked at again in %g s: %s", WATCH_AGAIN_S, error)
                await asyncio.sleep(WATCH_AGAIN_S)
            except WATCH_ERRORS as error:
                log.error("following the adapter folder failed; it is looked at again", exc_info=error)
                await asyncio.sleep(WATCH_AGAIN_S)
