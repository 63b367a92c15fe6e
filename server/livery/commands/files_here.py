"""The files of recorded versions on this machine for as long as a command reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager

from livery_adapters.library import AdapterLibrary
from livery_adapters.names import account_of
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import NamedVersion
from livery_adapters.store import Hold


async def hold_here(library: AdapterLibrary, version: NamedVersion) -> Hold:
    """Fetch the files of a version that has weights, where only the object store has them, and keep them.

    Raises AdapterRefused: blob_missing for files that are nowhere, and what `AdapterLibrary.bring` does.
    """
    facts = version.facts
    await library.bring(facts.weights, account_of(version.name))
    try:
        return await asyncio.to_thread(library.store.hold, facts.weights)
    except FileNotFoundError:
        raise AdapterRefused(
            "blob_missing",
            f"the files of {version.name}@{version.number} ({facts.digest[:12]}) are not in {library.store.root}; add "
            "the adapter again, or restore the folder from a backup",
        ) from None


@asynccontextmanager
async def files_here(library: AdapterLibrary, versions: Iterable[NamedVersion]) -> AsyncIterator[None]:
    """Have the files of versions here, all with weights, for as long as the context lasts. Raises as `hold_here`."""
    with ExitStack() as holds:
        for version in versions:
            holds.callback((await hold_here(library, version)).release)
        yield
