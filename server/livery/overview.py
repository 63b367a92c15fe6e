"""How the server is, for people: the engine, memory, throughput, every adapter, the last requests, at one moment.

    overview = Overview(service)
    answer = await overview.status(principal, Wanted(search="pirate", sort="tokens", descending=True, limit=50))

A plain dictionary, ready for JSON; sizes in bytes, times in seconds. What doesn't answer in time is left out, and the
rest is told all the same. Nobody learns the names of what it may not use.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from livery.activity import BASE, RATE_S, Activity, AdapterActivity, Finished
from livery.engine.base import EngineError, EngineStats
from livery.refusals import NotReady
from livery.roster import Roster
from livery.service import GenerationService
from livery.tenancy import Principal, scope
from livery_adapters.registry import Brief, RegistryError

log = logging.getLogger("livery.overview")

Json = dict[str, Any]
Column = Literal[
    "name", "state", "tier", "rank", "peft_type", "bytes", "running", "requests", "tokens", "ttft_p50_s", "ttft_p95_s",
    "last_used_s", "version",
]  # fmt: skip
COLUMNS: tuple[Column, ...] = get_args(Column)
MAX_PAGE = 1000
AT_ONCE = 250  # rows worked out before others have their turn, about a millisecond
ANSWER_S = 2.0  # an engine or a registry that takes longer is shown as not answering


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which adapters: those whose name holds `search`, in the order of a column, `limit` of them from `offset` on."""

    search: str = ""
    sort: Column = "name"
    descending: bool = False
    offset: int = 0
    limit: int = 100


class Overview:
    """Of one service. Use from one event loop."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service
        self._roster = Roster(service.adapters.registry)
        self._began = time.perf_counter()

    async def status(self, principal: Principal, wanted: Wanted) -> Json:
        """Everything at once."""
        stats, briefs = await asyncio.gather(self._stats(), self._briefs())
        service, activity, now = self._service, self._service.metrics.activity, time.perf_counter()
        rows = await self._rows(principal, stats, self._roster.known if briefs is None else briefs)
        return {
            "object": "status",
            "server": {
                "uptime_s": round(now - self._began, 1),
                "draining": service.draining,
                "registry": briefs is not None,
            },
            "base": self._base(activity, now, whole=principal.role == "admin"),
            "engine": self._engine(stats),
            "load": _load(stats if principal.role == "admin" else None, service.open_to(principal)),
            "throughput": _throughput(activity, now),
            "memory": self._memory(stats),
            "adapters": _page(rows, wanted),
            "requests": [
                _finished(principal, one, now)
                for one in activity.recent(None if principal.role == "admin" else principal.tenant)
                if _may_see(principal, one)
            ],
            "caller": _caller(principal),
        }

    async def _rows(self, principal: Principal, stats: EngineStats | None, known: Mapping[str, Brief]) -> list[Json]:
        """Every adapter that the caller sees; streams have their turn after some of them."""
        activity, now, rows = self._service.metrics.activity, time.perf_counter(), list[Json]()
        device, host = self._files(stats)
        for brief, kind in _seen(principal, known):
            own = kind == "own"
            row = self._row(brief, device, host, activity.of(brief.name), now) if own else _of_others(brief)
            row["name"] = scope.shown(principal, row["name"])
            rows.append(row)
            if len(rows) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return rows

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

    def _row(
        self, brief: Brief, device: frozenset[str], host: frozenset[str], done: AdapterActivity | None, now: float
    ) -> Json:
        served = self._service.adapters
        tier = "device" if brief.weights in device else "host" if brief.weights in host else "store"
        return {
            "name": brief.name,
            "own": True,
            "state": served.state(brief),
            "tier": tier if brief.active is not None else None,
            "rank": brief.rank or None,
            "peft_type": brief.peft_type or None,
            "bytes": brief.nbytes if brief.active is not None else None,
            "version": brief.active,
            "digest": brief.digest or None,
            "generation": brief.generation,
            "pinned": brief.pinned,
            "running": served.requests(brief.name),
            **_done(done, now),
            "error": _error(brief, done, now),
        }

    def _base(self, activity: Activity, now: float, *, whole: bool) -> Json:
        """`whole` False: not what all tenants together asked of it."""
        info, done = self._service.info, _done(activity.of(BASE), now)
        return {
            "name": self._service.base_name,
            "digest": info.base_digest,
            "architecture": info.architecture,
            "max_model_len": info.max_model_len,
            "weight_bytes": info.weight_bytes,
            **(done if whole else dict.fromkeys(done)),
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
                "cached_tokens": stats.blocks_cached * info.block_size,
            },
            "device": _adapters(stats.adapter_bytes, info.adapter_memory_bytes, len(stats.resident_adapters)),
            "host": _adapters(stats.host_adapter_bytes, info.host_adapter_memory_bytes, len(stats.host_adapters)),
        }


def _seen(principal: Principal, known: Mapping[str, Brief]) -> Iterator[tuple[Brief, scope.Kind]]:
    """What the caller may ask, and what it is to it; an admin sees everything as its own."""
    for brief in known.values():
        kind = scope.kind_of(principal, brief.owner)
        if principal.role == "admin":
            yield brief, "own"
            continue
        shown = scope.shown(principal, brief.name)
        reachable = kind != "shared" or principal.tenant in brief.grantees
        hidden = kind != "own" and scope.in_full(principal, shown) in known
        if reachable and not hidden and scope.allows(principal, kind, shown):
            yield brief, kind


def _of_others(brief: Brief) -> Json:
    """An adapter of somebody else's: that it is there, and nothing of what others do with it."""
    return {
        "name": brief.name,
        "own": False,
        "state": brief.state,
        "tier": None,
        "rank": brief.rank or None,
        "peft_type": brief.peft_type or None,
        "bytes": brief.nbytes if brief.active is not None else None,
        "version": brief.active,
        "digest": brief.digest or None,
        "generation": brief.generation,
        "pinned": brief.pinned,
        "running": None,
        **dict.fromkeys(_done(None, 0.0)),
        "error": None,
    }


def _adapters(used: int, limit: int, count: int) -> Json:
    return {"used_bytes": used, "limit_bytes": limit, "adapters": count}


def _load(stats: EngineStats | None, held: int) -> Json:
    """`open`: answers under way or waiting, as the service counts them; the rest as the engine does.

    The rest is None but for the operator. `step_seconds` is the time of all steps together.
    """
    if stats is None:
        unknown = ("running", "waiting", "steps", "step_seconds", "preemptions")
        return {"open": held, **dict.fromkeys(unknown)}
    return {
        "open": held,
        "running": stats.running,
        "waiting": stats.waiting,
        "steps": stats.steps,
        "step_seconds": stats.figures.step_seconds.total,
        "preemptions": stats.preemptions,
    }


def _throughput(activity: Activity, now: float) -> Json:
    """Tokens a second: the mean of the last seconds, and each of the last minute, oldest first."""
    generated, prompt = activity.throughput.by_second(now)
    return {
        "generated_per_s": sum(generated[-RATE_S:]) / RATE_S,
        "prompt_per_s": sum(prompt[-RATE_S:]) / RATE_S,
        "mean_of_s": RATE_S,
        "generated_by_second": generated,
        "prompt_by_second": prompt,
    }


def _done(done: AdapterActivity | None, now: float) -> Json:
    """What requests came to since the server started, or since they were last remembered."""
    if done is None:
        done = AdapterActivity(last_used=now)
    quantile = done.first_token.quantile
    return {
        "requests": done.requests,
        "errors": done.errors,
        "prompt_tokens": done.prompt_tokens,
        "generated_tokens": done.generated,
        "tokens": done.prompt_tokens + done.generated,
        "ttft_p50_s": quantile(0.5),
        "ttft_p95_s": quantile(0.95),
        "last_used_s": now - done.last_used if done.requests else None,
    }


def _error(brief: Brief, done: AdapterActivity | None, now: float) -> Json | None:
    """What went wrong last: with taking in or loading the adapter, else with a request."""
    if brief.error is not None:
        return {"code": brief.error_code, "message": brief.error, "age_s": None}
    if done is not None and done.errors:
        return {"code": "request_failed", "message": done.error or "a request failed", "age_s": now - done.error_at}
    return None


def _page(rows: list[Json], wanted: Wanted) -> Json:
    search = wanted.search.lower()
    found = [row for row in rows if search in row["name"].lower()]
    chosen = _sorted(found, wanted.sort, wanted.descending)[wanted.offset : wanted.offset + wanted.limit]
    return {"data": chosen, "total": len(rows), "found": len(found), "offset": wanted.offset, "limit": wanted.limit}


def _sorted(rows: Iterable[Json], column: Column, descending: bool) -> list[Json]:
    """By a column, then by name; what has no value there comes last in either direction."""
    by_name = sorted(rows, key=lambda row: str(row["name"]))
    known = [row for row in by_name if row[column] is not None]
    return sorted(known, key=lambda row: row[column], reverse=descending) + [
        row for row in by_name if row[column] is None
    ]


def _may_see(principal: Principal, request: Finished) -> bool:
    """A user sees its own key's requests, an owner its tenant's, an admin all."""
    if principal.role == "admin":
        return True
    own = request.tenant == principal.tenant
    return own and (principal.role == "owner" or request.key == principal.key)


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
    """Who asks, and which verbs its role has."""
    manages = principal.role in ("owner", "admin")
    return {
        "tenant": principal.tenant,
        "role": principal.role,
        "keyed": principal.key is not None,
        "may": {"manage": manages, "pin": principal.role == "admin"},
    }
