"""Files that another server took in, fetched from the object store that servers share, in turns of accounts.

An object store may take minutes to answer. Fetches have threads of their own: the event loop's are for look-ups in the
registry, which are to wait for nobody.
"""

from __future__ import annotations

import asyncio
from functools import partial

from livery_adapters.shared_threads import SharedThreads
from livery_adapters.store import BlobStore

FETCHES = 8  # at once


class Bringing:
    """Into one store. Use from one event loop."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._threads = SharedThreads(FETCHES, "livery-bringing")
        self._under_way: dict[tuple[str, str], asyncio.Task[bool]] = {}

    async def bring(self, weights: str, account: str) -> None:
        """Have files here; once for all of an account who wait. Raises what `BlobStore.bring` does."""
        if self._store.shared is None or self._store.path(weights).is_dir():
            return
        key = weights, account  # what another account waits for may be the last in its line
        if key not in self._under_way:
            fetch = partial(self._store.bring, weights)
            self._under_way[key] = asyncio.create_task(self._threads.run(account, fetch))
            self._under_way[key].add_done_callback(lambda _: self._under_way.pop(key, None))
        await asyncio.shield(self._under_way[key])
