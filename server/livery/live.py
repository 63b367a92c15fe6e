"""What only a running server knows of its adapters, and what there is to know without one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from livery.tenancy import Principal
from livery_adapters.registry import OPERATOR, AdapterRecord


class Live(Protocol):
    """What only a running server knows of its adapters."""

    def changing(self, name: str, owner: str = OPERATOR) -> AbstractAsyncContextManager[None]:
        """Around a change of a tenant's name: when it ends, whoever asks next sees the change."""
        ...

    def state(self, record: AdapterRecord) -> str:
        """The record's state with what is on its way in or out."""
        ...

    def requests(self, name: str, account: str | None = None) -> int:
        """Requests under way on the adapter; with an account that tenant's alone."""
        ...

    async def resident(self) -> frozenset[str]:
        """Names whose active version is in device memory."""
        ...

    async def prefetch(self, record: AdapterRecord, principal: Principal) -> None:
        """Have the engine read the active version now, within what a tenant's adapters may take."""
        ...


class Offline:
    """Nobody serves: what the registry says is all there is."""

    @asynccontextmanager
    async def changing(self, name: str, owner: str = OPERATOR) -> AsyncIterator[None]:
        yield

    def state(self, record: AdapterRecord) -> str:
        return record.state

    def requests(self, name: str, account: str | None = None) -> int:
        return 0

    async def resident(self) -> frozenset[str]:
        return frozenset()

    async def prefetch(self, record: AdapterRecord, principal: Principal) -> None:
        return None
