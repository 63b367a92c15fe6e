"""What management asks and tells of a running server, which may be several processes: Live, and its keys.

Whatever is changed by one of them holds in the others before the answer is sent: who adds an adapter or a key may use
it, whichever process is asked next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from livery.served import ServedAdapters
from livery.superseding import Superseded
from livery.survey import Survey
from livery.tenancy import KeyRing, Principal
from livery.under_way import UnderWay
from livery_adapters.registry import OPERATOR_TENANT, AdapterRecord


class Serving:
    """Of one server. Use from one event loop."""

    def __init__(self, served: ServedAdapters, survey: Survey) -> None:
        self._served, self._survey = served, survey

    @asynccontextmanager
    async def changing(self, name: str, owner: str = OPERATOR_TENANT) -> AsyncIterator[None]:
        try:
            async with self._served.changing(name, owner):
                yield
        finally:
            await self._survey.spread([name])

    async def supersede(self, told: Superseded) -> None:
        self._served.supersede(told)
        await self._survey.spread([told.name], superseded=told)

    async def under_way(self) -> UnderWay:
        return await self._survey.under_way()

    def state(self, record: AdapterRecord, under_way: UnderWay) -> str:
        return self._served.state(record, under_way)

    async def resident(self) -> frozenset[str]:
        return await self._served.resident()

    async def prefetch(self, record: AdapterRecord, principal: Principal) -> None:
        await self._served.prefetch(record, principal)


class ServingKeys:
    """Keys and tenants as all of a server knows them."""

    def __init__(self, ring: KeyRing, survey: Survey) -> None:
        self._ring, self._survey = ring, survey

    async def refresh(self) -> None:
        """Know what the database knows now. Raises RegistryError."""
        await self._ring.refresh()
        await self._survey.spread(keys=True)
