"""Puts a server's parts together over a running engine: registry, files, adapters, service, management, folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from livery.adapter_text import AdapterText
from livery.admission import BODY_BYTES
from livery.data_folder import DataFolder, DataFolderUnusable
from livery.engine.base import Asker, Engine, EngineInfo
from livery.followed import FollowedFolder
from livery.foreign_templates import TemplateWorkers
from livery.grammar_check import GrammarCheck
from livery.intakes import MAX_INTAKES
from livery.lease import asker_of
from livery.management import AdapterManagement
from livery.reading import AS_THE_TEMPLATE, ParserNames
from livery.scrape import Settling
from livery.served import ServedAdapters
from livery.service import GenerationService
from livery.serving import Serving
from livery.survey import Counting, OwnCounting
from livery.tenancy import (
    Flusher,
    KeyRing,
    LevelExchange,
    LevelStore,
    RateLimiter,
    Room,
    TenantStore,
    UsageExpiry,
    UsageStore,
    scope,
)
from livery.tenancy.gate import Gate, Gatekeeper
from livery.text import Tokenizer
from livery.vitals import Vitals
from livery_adapters.base_model import BaseModel
from livery_adapters.fetching import SourcePolicy
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused, Limits
from livery_adapters.registry import Registry
from livery_adapters.shared_blobs import SharedBlobs
from livery_adapters.store import BlobStore

# What may wait unless --max-queued-tokens says otherwise: steps full of prompts, or so many tokens if that is more.
QUEUED_STEPS, QUEUED_TOKENS = 256, 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """What decides how the parts are put together. `root` is the operator's adapter folder, None for none."""

    base_name: str
    data: DataFolder
    registry: str | None = None  # a postgresql:// URL; the data folder's own otherwise
    shared: SharedBlobs | None = None  # where the servers of one registry share adapter files
    root: Path | None = None
    poll: bool = False
    sources: SourcePolicy  # what management may fetch, the adapter folder included
    keep_versions: int = 10
    limits: Limits = DEFAULT_LIMITS
    gate: Gatekeeper  # who lets requests in
    processes: int = 1  # that share the server's memory for bodies, and the uploads at once
    counting: Counting = field(default_factory=OwnCounting)
    usage_days: int = 0
    adapter_templates: bool = True
    parsers: ParserNames = AS_THE_TEMPLATE


def gate_for(info: EngineInfo, max_open: int = 1024, max_queued_tokens: int = 0) -> Gate:
    """Room for so many sequences and prompt tokens (0: some steps full of them), and nobody's limits used yet."""
    tokens = max_queued_tokens or max(QUEUED_TOKENS, QUEUED_STEPS * info.max_batch_tokens)
    return Gate(Room(max_open, tokens), RateLimiter())


def shared_limits(gate: Gate, tenants: TenantStore) -> LevelExchange:
    """Limits per minute that hold over all servers of this store, once it is started."""
    return LevelExchange(gate.limiter, LevelStore(tenants.database).exchange)


@dataclass(frozen=True, slots=True)
class ServerParts:
    """What a server runs beside its engine."""

    service: GenerationService
    management: AdapterManagement
    folder: FollowedFolder | None
    registry: Registry
    text: AdapterText
    tenants: TenantStore
    keys: KeyRing
    usage: UsageStore
    flusher: Flusher
    expiry: UsageExpiry
    settling: Settling
    levels: LevelExchange | None  # where other servers may let in the same keys

    async def stop(self) -> None:
        """Stop following folder, registry and keys, and write what was used; requests must have ended."""
        if self.folder is not None:
            await self.folder.stop()
        await self.keys.stop()
        await self.flusher.stop()
        await self.expiry.stop()
        await self.settling.stop()
        if self.levels is not None:
            await self.levels.stop()
        await self.service.adapters.stop()
        await self.service.grammars.stop()
        self.text.close()
        await asyncio.to_thread(self.registry.close)
        await asyncio.to_thread(self.tenants.close)


def source_policy(allowed: tuple[str, ...], root: Path | None) -> SourcePolicy:
    """The sources that the operator allows, and the adapter folder. Raises ValueError for one that can't be read."""
    return SourcePolicy([*allowed, *([str(root.resolve())] if root is not None else [])])


async def assemble(
    engine: Engine, info: EngineInfo, tokenizer: Tokenizer, plan: Assembly, progress: Callable[[str], None]
) -> ServerParts:
    """Open what is on disk and take in what the folder holds.

    Raises RegistryError, DataFolderUnusable where the files there are another registry's, NotADirectoryError.
    """
    async with AsyncExitStack() as opened:
        progress("opening the registry")
        url = plan.data.tenants_url(plan.registry)
        tenants = opened.enter_context(closing(await asyncio.to_thread(TenantStore.open, url)))
        registry = await asyncio.to_thread(
            Registry.open,
            plan.registry or plan.data.registry_url(),
            frozenset({plan.base_name}),
            lambda name: scope.owner_of(name, tenants.is_tenant),
        )
        opened.enter_context(closing(registry))
        store = await asyncio.to_thread(BlobStore, plan.data.adapters, plan.limits, plan.shared)
        grammars = GrammarCheck(tokenizer.to_json, info)
        text = AdapterText(
            tokenizer,
            info.vocab_size,
            TemplateWorkers(),
            allow_templates=plan.adapter_templates,
            try_schema=grammars.check_schema,
        )
        opened.enter_context(closing(text))
        opened.push_async_callback(grammars.stop)
        parts = _over(engine, info, plan, _Opened(tenants, registry, store, text, grammars))
        opened.pop_all()
        opened.push_async_callback(parts.stop)
        await asyncio.to_thread(check_owner, store)
        if plan.shared is not None:  # whoever else adds adapters to the registry learns where their files go
            await asyncio.to_thread(registry.use_blob_store, str(plan.shared))
        await _start(parts, progress)
        opened.pop_all()
        return parts


@dataclass(frozen=True, slots=True)
class _Opened:
    """What holds files and processes, and is closed by whoever stops the server."""

    tenants: TenantStore
    registry: Registry
    store: BlobStore
    text: AdapterText
    grammars: GrammarCheck


def check_owner(store: BlobStore) -> None:
    """Before anything looks for garbage. Raises DataFolderUnusable where the files are another registry's."""
    try:
        store.check_owner()
    except AdapterRefused as refused:
        raise DataFolderUnusable(f"{store.root}: {refused.message}") from None


def _over(engine: Engine, info: EngineInfo, plan: Assembly, opened: _Opened) -> ServerParts:
    """The parts over what is open, none of them started. Raises NotADirectoryError."""
    tenants = opened.tenants
    keys = KeyRing(tenants)
    adapters = _adapters(engine, info, plan, opened, keys)
    metrics = plan.counting.metrics(plan.base_name, info)
    survey = plan.counting.survey(metrics, adapters.under_way)
    survey.share(adapters.staging)
    root = plan.root.resolve() if plan.root is not None else None
    management = AdapterManagement(
        adapters.library,
        plan.sources,
        Serving(adapters, survey),
        root=root,
        is_tenant=keys.is_tenant,
        intakes=max(1, MAX_INTAKES // plan.processes),
    )
    service = GenerationService(
        engine,
        opened.text,
        adapters,
        opened.grammars,
        info,
        base_name=plan.base_name,
        created=int(time.time()),
        gate=plan.gate,
        body_bytes=BODY_BYTES // plan.processes,
        metrics=metrics,
        survey=survey,
        is_tenant=keys.is_tenant,
        parsers=plan.parsers,
    )
    keys.when_gone(survey.forget_tenants)
    folder = None
    if root is not None:
        folder = FollowedFolder(root, plan.data, adapters, check=engine.stats, poll=plan.poll, is_tenant=keys.is_tenant)
    usage = UsageStore(tenants.database)
    return ServerParts(
        service=service,
        management=management,
        folder=folder,
        registry=opened.registry,
        text=opened.text,
        tenants=tenants,
        keys=keys,
        usage=usage,
        flusher=Flusher(service.admission.meter, usage.add, service.account),
        expiry=UsageExpiry(usage, plan.usage_days),
        settling=Settling(service),
        levels=shared_limits(plan.gate, tenants) if plan.registry is not None and isinstance(plan.gate, Gate) else None,
    )


def _adapters(engine: Engine, info: EngineInfo, plan: Assembly, opened: _Opened, keys: KeyRing) -> ServedAdapters:
    def known_asker(name: str) -> Asker:
        tenant = keys.tenant(name)
        return asker_of(name) if tenant is None else asker_of(name, tenant.weight, tenant.limits)

    return ServedAdapters(
        engine,
        info,
        BaseModel(plan.base_name, info.base_digest, info.shapes),
        opened.registry,
        opened.store,
        plan.limits,
        keep_versions=plan.keep_versions,
        text=opened.text,
        vitals=Vitals(),
        asker_of=known_asker,
    )


async def _start(parts: ServerParts, progress: Callable[[str], None]) -> None:
    """Start what follows and writes beside the requests, and take in what the folder holds."""
    vitals = parts.service.adapters.vitals
    if parts.levels is not None:
        parts.levels.start(vitals)
    parts.flusher.start(vitals)
    parts.expiry.start(vitals)
    parts.settling.start()
    await parts.keys.start(vitals)
    await parts.service.adapters.start()
    if parts.folder is not None:
        progress("looking at the adapter folder")
        await parts.folder.start()
