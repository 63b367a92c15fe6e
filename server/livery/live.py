"""What only a running server knows of its adapters, and what there is to know without one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from livery.superseding import Superseded
from livery.tenancy import Principal
from livery.under_way import UnderWay
from livery_adapters.registry import OPERATOR_TENANT, AdapterRecord


class Live(Protocol):
    """What only a running server knows of its adapters."""

    def changing(self, name: str, owner: str = OPERATOR_TENANT) -> AbstractAsyncContextManager[None]:
        """Around a change of a tenant's name: when it ends, whoever asks next sees the change."""
        ...

    async def under_way(self) -> UnderWay:
        """Requests under way on all of the server, now."""
        ...

    async def supersede(self, told: Superseded) -> None:
        """Have requests on other versions of a name end, in all of the server's processes."""
        ...

    def state(self, record: AdapterRecord, under_way: UnderWay) -> str:
        """The record's state with what is on its way in or out."""
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
    async def changing(self, name: str, owner: str = OPERATOR_TENANT) -> AsyncIterator[None]:
        yield

    async def under_way(self) -> UnderWay:
        return UnderWay()

    async def supersede(self, told: Superseded) -> None:
        return None

    def state(self, record: AdapterRecord, under_way: UnderWay) -> str:
        return record.state

    async def resident(self) -> frozenset[str]:
        return frozenset()

    async def prefetch(self, record: AdapterRecord, principal: Principal) -> None:
        return None
