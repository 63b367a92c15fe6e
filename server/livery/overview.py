"""How the server is, for people: the engine, memory, throughput, every adapter, the last requests, at one moment.

    overview = Overview(service)
    answer = await overview.status(principal, Wanted(search="pirate", sort="tokens", descending=True, limit=50))

A plain dictionary, ready for JSON; sizes in bytes, times in seconds. What doesn't answer in time is left out, and the
rest is told all the same. Nobody learns the names of what it may not use, and none but the operator what others do: of
all figures a tenant sees its own, and of the memory that all share none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import structs

from livery.activity import BASE, RATE_S, Finished, Lately
from livery.adapter_views import limits_json
from livery.beside import REPORTING, Together
from livery.engine.base import EngineError, EngineStats
from livery.refusals import NotReady
from livery.service import GenerationService
from livery.status_rows import Viewer, Wanted, figures, table
from livery.survey import House
from livery.tenancy import Principal, scope
from livery.under_way import UnderWay
from livery_adapters.registry import Brief, RegistryError

log = logging.getLogger("livery.overview")

Json = dict[str, Any]
ANSWER_S = 2.0  # an engine or a registry that takes longer is shown as not answering


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Figures of one moment: of the whole server for an admin, else of one tenant; `files` in device and host memory.

    Without `registry` the briefs are as they were when it answered last.
    """

    stats: EngineStats | None
    briefs: Mapping[str, Brief]
    registry: bool
    lately: Lately
    under_way: UnderWay
    house: House
    held: int  # answers under way or waiting
    files: tuple[frozenset[str], frozenset[str]]


class Overview:
    """Of one service. Use from one event loop."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service
        self._roster = service.roster
        self._gathering: Together[tuple[str, str, bool], _Gathered] = Together()
        self._began = time.perf_counter()

    async def status(self, principal: Principal, wanted: Wanted) -> Json:
        """Everything at once. A tenant's requests take turns with others' lists, and gather figures together."""
        whole = principal.role == "admin"
        told = await self._gathering.do((principal.tenant, principal.account, whole), partial(self._gather, principal))
        stats, lately, house, now = told.stats, told.lately, told.house, time.perf_counter()
        viewer = Viewer(principal, self._service.adapters, lately, told.under_way, *told.files)
        adapters = await REPORTING.run(principal.tenant, partial(table, viewer, told.briefs, wanted))
        return {
            "object": "status",
            "server": {
                "uptime_s": round(now - (house.began or self._began), 1),
                "draining": self._service.draining,
                "registry": told.registry,
                "limits": limits_json(self._service.adapters.library.limits),
                **({"workers": [structs.asdict(one) for one in house.workers]} if whole and house.workers else {}),
            },
            "base": self._base(lately, now),
            "engine": self._engine(stats),
            "load": _load(principal, stats, told.held),
            "throughput": throughput(lately),
            "memory": self._memory(stats) if whole else None,
            "adapters": adapters,
            "requests": [_finished(principal, one, now) for one in lately.recent if _may_see(principal, one)],
            "caller": _caller(principal),
        }

    async def _gather(self, principal: Principal) -> _Gathered:
        """What all who see the same as the caller are told."""
        stats, briefs = await asyncio.gather(self._stats(), self._briefs())
        service, survey = self._service, self._service.survey
        lately, under_way, house, held = await asyncio.gather(
            survey.lately(None if principal.role == "admin" else principal.account),
            survey.under_way(),
            survey.house(),
            service.open_to(principal),
        )
        known = self._roster.known if briefs is None else briefs
        return _Gathered(stats, known, briefs is not None, lately, under_way, house, held, self._files(stats))

    async def _stats(self) -> EngineStats | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._service.progress()
        except (EngineError, NotReady, TimeoutError):
            return None

    async def _briefs(self) -> dict[str, Brief] | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._roster.read()
        except (RegistryError, TimeoutError) as error:
            log.warning("the status shows adapters as they were: %s", error or "the registry doesn't answer in time")
            return None

    def _files(self, stats: EngineStats | None) -> tuple[frozenset[str], frozenset[str]]:
        """The digests of files in device memory and in host memory."""
        if stats is None:
            return frozenset(), frozenset()
        files = self._service.adapters.files_of
        return files(stats.resident_adapters), files(stats.host_adapters)

    def _base(self, lately: Lately, now: float) -> Json:
        info = self._service.info
        return {
            "name": self._service.base_name,
            "digest": info.base_digest,
            "architecture": info.architecture,
            "max_model_len": info.max_model_len,
            "weight_bytes": info.weight_bytes,
            **figures(lately.adapters.get(BASE), now),
        }

    def _engine(self, stats: EngineStats | None) -> Json:
        info = self._service.info
        return {
            "answers": stats is not None,
            "device": info.device,
            "dtype": info.dtype,
            "weights": info.weights or None,
            "kernels": info.kernels,
            "attention": info.attention,
            "decoder": info.decoder,
            "threads": info.threads or None,
            "max_running": info.max_running,
            "max_batch_tokens": info.max_batch_tokens,
        }

    def _memory(self, stats: EngineStats | None) -> Json | None:
        if stats is None:
            return None
        info = self._service.info
        return {
            "kv": {
                "total_tokens": stats.blocks_total * info.block_size,
                "used_tokens": (stats.blocks_total - stats.blocks_free) * info.block_size,
                "cached_tokens": None if stats.blocks_cached is None else stats.blocks_cached * info.block_size,
            },
            "device": _adapters(stats.adapter_bytes, info.adapter_memory_bytes, len(stats.resident_adapters)),
            "host": _adapters(stats.host_adapter_bytes, info.host_adapter_memory_bytes, len(stats.host_adapters)),
        }


def _adapters(used: int, limit: int, count: int) -> Json:
    return {"used_bytes": used, "limit_bytes": limit, "adapters": count}


def _load(principal: Principal, stats: EngineStats | None, held: int) -> Json:
    """`open`: answers under way or waiting, as the service counts them; the rest as the engine does.

    A tenant's own, and of steps nothing, as they are everybody's. `step_seconds` is the time of all together.
    """
    unknown = dict.fromkeys(("running", "waiting", "steps", "step_seconds", "preemptions"))
    if stats is None:
        return {"open": held, **unknown}
    if principal.role != "admin":
        own = next((one for one in stats.figures.tenants if one.tenant == principal.tenant), None)
        if own is None and held:  # the engine tells of those with the most requests
            return {"open": held, **unknown}
        counts = {"running": own.running if own else 0, "waiting": own.waiting if own else 0}
        return {"open": held, **unknown, **counts}
    return {
        "open": held,
        "running": stats.running,
        "waiting": stats.waiting,
        "steps": stats.steps,
        "step_seconds": stats.figures.step_seconds.total,
        "preemptions": stats.preemptions,
    }


def throughput(lately: Lately) -> Json:
    """Tokens a second: the mean of the last seconds, and each of the last minute, oldest first."""
    generated, prompt = lately.generated, lately.prompt
    return {
        "generated_per_s": sum(generated[-RATE_S:]) / RATE_S,
        "prompt_per_s": sum(prompt[-RATE_S:]) / RATE_S,
        "mean_of_s": RATE_S,
        "generated_by_second": generated,
        "prompt_by_second": prompt,
    }


def _may_see(principal: Principal, request: Finished) -> bool:
    """Of its tenant's requests (of all, to an admin) a user sees those of its own key."""
    return principal.role != "user" or request.key == principal.key


def _finished(principal: Principal, request: Finished, now: float) -> Json:
    return {
        "id": request.id,
        "route": request.route,
        "model": scope.shown(principal, request.adapter) or None,
        "digest": request.digest or None,
        "status": request.status,
        "outcome": request.outcome,
        "prompt_tokens": request.prompt_tokens,
        "generated_tokens": request.generated,
        "ttft_s": request.first_token_s,
        "duration_s": request.duration_s,
        "age_s": now - request.at,
    }


def _caller(principal: Principal) -> Json:
    """Who asks, which verbs its role has, and whose figures it sees."""
    manages = principal.role in ("owner", "admin")
    return {
        "tenant": principal.tenant,
        "role": principal.role,
        "keyed": principal.key is not None,
        "sees": "all" if principal.role == "admin" else "tenant",
        "may": {"manage": manages, "pin": principal.role == "admin"},
    }
