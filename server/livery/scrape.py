"""One scrape: what the whole server counted, and how its engine and its adapters stand, as text for Prometheus.

settling = Settling(service)
settling.start()                # what is gone is forgotten, also where nobody scrapes
await scraped(service)
await settling.stop()
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from sqlalchemy.exc import SQLAlchemyError

from livery.engine.base import EngineError, EngineStats
from livery.metrics import Metrics, ServerState, Snapshot
from livery.refusals import NotReady
from livery.roster import standing
from livery.service import GenerationService
from livery_adapters.registry import Brief, RegistryError

log = logging.getLogger("livery.service")

# Scrapers give up after 10 seconds as a rule, and want what is known without the engine before that.
SCRAPE_TIMEOUT_S, REGISTRY_TIMEOUT_S = 5.0, 3.0
TASK = "metrics-settling"
EVERY_S = 3600.0


async def scraped(service: GenerationService) -> bytes:
    """Series of the engine or the registry are left out while it doesn't answer; the rest is always there."""
    books, snapshot = await _settled(service)
    state = await _state(service)
    return await asyncio.to_thread(books.text, snapshot, state)


class Settling:
    """Once an hour has counts of adapters and tenants that are gone forgotten; each scrape does, too."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service
        self._vitals = service.adapters.vitals

    def start(self) -> None:
        self._vitals.run(TASK, self._go_on())

    async def stop(self) -> None:
        await self._vitals.stop(TASK)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await _settled(self._service)


async def _settled(service: GenerationService) -> tuple[Metrics, Snapshot | None]:
    """The whole server's counts, without who is gone; no snapshot while the engine doesn't answer."""
    told = await _told(service)
    books = await service.survey.books()
    snapshot = await _snapshot(service, books, *told) if told is not None else None
    if snapshot is not None:
        await service.survey.settle(books, snapshot)
    return books, snapshot


async def _told(service: GenerationService) -> tuple[EngineStats, Mapping[str, Brief] | None] | None:
    """What the engine and the registry say; None while the engine doesn't answer."""
    try:
        async with asyncio.timeout(SCRAPE_TIMEOUT_S):
            return await asyncio.gather(service.progress(), _briefs(service))
    except (EngineError, NotReady, TimeoutError):
        return None


async def _snapshot(
    service: GenerationService, books: Metrics, stats: EngineStats, briefs: Mapping[str, Brief] | None
) -> Snapshot:
    """The engine's numbers with digests turned into names, and without them while the registry doesn't answer."""
    tenants = tuple(name for name in books.tenants.names() if not service.is_tenant(name))
    if briefs is None:
        return Snapshot(stats, gone_tenants=tenants)
    files = service.adapters.files_of
    device, waiting = files(stats.resident_adapters), files(stats.waiting_adapters)
    told = await asyncio.to_thread(standing, briefs.values(), device, waiting, books.adapters.names())
    return Snapshot(stats, told, tenants)


async def _state(service: GenerationService) -> ServerState:
    """How the server stands. What another process heard of the engine counts, or its restarts would seem to fall."""
    held, house = await service.admission.gate.held(), await service.survey.house()
    answered, restarts = house.engine_answered, house.engine_restarts
    return ServerState(
        ready=await _ready(service),
        heartbeat_age_s=time.monotonic() - (service.answered if answered is None else answered),
        restarts=service.restarts if restarts is None else restarts,
        open_sequences=held.sequences,
        max_open_sequences=held.most_sequences,
        queued_tokens=held.tokens,
        max_queued_tokens=held.most_tokens,
        open_by_tenant=held.sequences_by_tenant,
        queued_by_tenant=held.tokens_by_tenant,
        processes=house.pids,
        cpu_s=house.cpu_s,
        workers=sum(worker.serving for worker in house.workers) or 1,
        worker_restarts=sum(worker.restarts for worker in house.workers),
    )


async def _ready(service: GenerationService) -> bool:
    """As GET /ready has it."""
    if service.draining:
        return False
    try:
        await service.readiness.ready()
    except (NotReady, EngineError):
        return False
    return True


async def _briefs(service: GenerationService) -> Mapping[str, Brief] | None:
    try:
        async with asyncio.timeout(REGISTRY_TIMEOUT_S):
            return await service.roster.read()
    except (RegistryError, SQLAlchemyError, TimeoutError) as error:
        log.warning("metrics leave out what the registry knows: %s", error or "it doesn't answer in time")
        return None
