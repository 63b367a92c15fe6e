"""A server's parts from its settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlsplit

from fastapi import FastAPI

from livery.api.app import create_app
from livery.assembly import Assembly, ServerParts, assemble, check_owner, gate_for, source_policy
from livery.data_folder import DataFolder, KnownBase
from livery.engine.base import Engine, EngineConfig, EngineInfo
from livery.models import ResolvedModel
from livery.reading import ParserNames, untold_calls
from livery.settings import Settings, SettingsError, revealed
from livery.spans import TraceSink
from livery.survey import Counting, OwnCounting
from livery.tenancy import Doors
from livery.tenancy.gate import Gatekeeper
from livery.text import Tokenizer
from livery_adapters.fetching import SourcePolicy
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import Registry
from livery_adapters.shared_blobs import SharedBlobs
from livery_adapters.store import BlobStore

log = logging.getLogger(__name__)


def engine_process(config: EngineConfig, progress: Callable[[str], None]) -> Engine:
    """An engine in a process of its own, started anew when it is lost."""
    from livery.engine.client import EngineClient
    from livery.engine.supervisor import SupervisedEngine

    return SupervisedEngine(config, lambda told, lost: EngineClient(told, progress, lost))


async def server_parts(
    settings: Settings,
    resolved: ResolvedModel,
    engine: Engine,
    info: EngineInfo,
    progress: Callable[[str], None],
    gate: Gatekeeper | None = None,
    counting: Counting | None = None,
    *,
    first: bool = True,
) -> ServerParts:
    """What a server runs beside its started engine. Raises SettingsError, RegistryError, TokenizerRefused.

    Without a `gate` it has room and limits of its own, without `counting` what it counts is all there is. Of several
    processes of a server the `first` does what only one of them is to do.
    """
    tokenizer = await asyncio.to_thread(Tokenizer.from_directory, resolved.path)
    parsers = ParserNames(settings.tool_parser, settings.reasoning_parser)
    if first and (untold := untold_calls(parsers, tokenizer.template)):
        log.warning("%s", untold)
    plan = Assembly(
        base_name=base_name(settings, resolved),
        data=DataFolder(settings.data_folder),
        registry=settings.registry,
        shared=shared_blobs(settings),
        root=settings.adapters,
        poll=settings.poll_adapters,
        sources=allowed_sources(settings),
        keep_versions=settings.keep_versions,
        limits=settings.adapter_limits,
        gate=gate or gate_for(info, settings.max_open, settings.max_queued_tokens),
        processes=settings.api_workers,
        counting=counting or OwnCounting(settings.metrics_max_adapters),
        usage_days=settings.usage_days if first else 0,
        adapter_templates=settings.adapter_templates,
        parsers=parsers,
    )
    return await assemble(engine, info, tokenizer, plan, progress)


def application(settings: Settings, parts: ServerParts, doors: Doors, tracing: TraceSink | None) -> FastAPI:
    """The public API over a server's parts."""
    return create_app(
        parts.service,
        parts.management,
        doors,
        parts.usage,
        cors_origins=settings.cors_origins,
        root_path=settings.root_path,
        strict_params=settings.strict_params,
        request_timeout_s=settings.request_timeout,
        max_body=int(settings.max_body),
        tracing=tracing,
    )


def server_doors(settings: Settings, parts: ServerParts, *, behind_proxy: bool = False) -> Doors:
    """Who gets in. `behind_proxy`: requests are passed on, whether a knob says so or not."""
    return Doors(
        revealed(settings.api_key),
        ring=parts.keys,
        metrics_key=revealed(settings.metrics_key),
        open_metrics=settings.metrics_without_key,
        behind_proxy=behind_proxy or bool(settings.root_path),
    )


def trace_sink(settings: Settings) -> TraceSink | None:
    """Where traces go, if anywhere. Raises SettingsError without the packages for it, or where that can't be."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from livery.otlp import Tracing
    except ImportError:
        raise SettingsError("--otlp-endpoint needs OpenTelemetry's messages: pip install 'livery[otel]'") from None
    return Tracing(settings.otlp_endpoint)


def check_adapter_folder(settings: Settings) -> None:
    """Raises SettingsError where there is none of the name that was given."""
    if settings.adapters is not None and not settings.adapters.is_dir():
        raise SettingsError(f"--adapters {settings.adapters} is not a folder; create it or give another")


def check_files(settings: Settings) -> None:
    """Before anything is written there. Raises DataFolderUnusable where the files are another registry's."""
    folder = DataFolder(settings.data_folder)
    with closing(Registry.open(settings.registry or folder.registry_url())) as registry:
        store = BlobStore(folder.adapters)
        store.belong_to(registry.identity, registry.weights_in_use)
        check_owner(store)


def shared_blobs(settings: Settings) -> SharedBlobs | None:
    """The object store in which servers share adapter files, if they do. Touches no network. Raises SettingsError."""
    if settings.blob_store is None:
        return None
    if settings.registry is None:
        raise SettingsError(
            f"--blob-store {settings.blob_store} is for servers that share a registry; name that with --registry "
            "postgresql://..., or leave --blob-store out"
        )
    try:
        return SharedBlobs(settings.blob_store)
    except AdapterRefused as refused:
        raise SettingsError(f"--blob-store: {refused.message}") from None


def allowed_sources(settings: Settings) -> SourcePolicy:
    """Where adapters may be fetched from. Touches no network. Raises SettingsError."""
    try:
        return source_policy(settings.allow_source, settings.adapters)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def known_base(settings: Settings, resolved: ResolvedModel, info: EngineInfo) -> KnownBase:
    """What the data folder is told of the base that is served."""
    name, shared = base_name(settings, resolved), settings.blob_store or ""
    return KnownBase(name, info.base_digest, settings.model, info.shapes, without_password(settings.registry), shared)


def base_name(settings: Settings, resolved: ResolvedModel) -> str:
    """What clients call the base; it travels in a header. Raises SettingsError."""
    name = settings.served_model_name or resolved.name
    if not name.isascii() or not name.isprintable():
        raise SettingsError(f"clients can't call a model {name!r}; give it a plain name with --served-model-name")
    return name


def without_password(url: str | None) -> str:
    """A database URL as it may be written down."""
    if not url:
        return ""
    parts = urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{user}{parts.hostname or ''}{port}", query="").geturl()
