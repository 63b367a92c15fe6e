"""A whole server over a fake engine: real tokenizer, real adapters on disk, real HTTP on a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import openai
from fastapi import FastAPI

from livery.api.app import create_admin_app, create_app
from livery.api.boundary import MAX_BODY
from livery.api.edges import EdgeConfig, EdgeServer
from livery.assembly import Assembly, ServerParts, assemble, gate_for, source_policy
from livery.data_folder import DataFolder
from livery.engine.fake import Behaviour, FakeEngine
from livery.management import AdapterManagement
from livery.reading import AS_THE_TEMPLATE, ParserNames
from livery.service import GenerationService
from livery.spans import TraceSink
from livery.tenancy import Doors, Flusher, KeyRing, LevelExchange, TenantManagement, TenantStore
from livery.tenancy.gate import Gate
from livery.text import Tokenizer
from livery_adapters.base_model import ModuleShape
from livery_adapters.refusal import Limits

T = TypeVar("T")
BASE = "base-model"
VOCAB = 49152
# The linear modules of the tiny model in `make_adapter`.
MODULES = {
    f"model.layers.{layer}.self_attn.{name}": ModuleShape("linear", 16, 16)
    for layer in range(2)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj")
}


@dataclass
class Setup:
    """What a test wants different from the usual."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    api_key: str | None = None
    metrics_key: str | None = None
    admin: bool = False  # whether there is an admin API
    admin_key: str | None = None
    keep_alive_s: float = 15.0
    max_model_len: int = 256
    max_open: int = 1024
    max_queued_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()
    drain_s: int = 5
    root_path: str = ""
    cors_origins: tuple[str, ...] = ()
    vocab_size: int = VOCAB
    adapter_templates: bool = True
    parsers: ParserNames = AS_THE_TEMPLATE
    strict_params: bool = False
    request_timeout_s: float = 0.0
    max_body: int = MAX_BODY
    allow_source: tuple[str, ...] = ()
    registry: str | None = None  # of several servers
    tracing: TraceSink | None = None


class LiveServer:
    """A running server: where it is, and a way to run code on its event loop."""

    def __init__(self, setup: Setup, tokenizer: Tokenizer, folder: Path) -> None:
        self.adapter_root = folder / "adapters"
        self.adapter_root.mkdir(exist_ok=True)
        self._setup, self._tokenizer, self._folder = setup, tokenizer, folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started: Future[str] = Future()
        self._stop = asyncio.Event()
        self.engine: FakeEngine
        self.service: GenerationService
        self.gate: Gate
        self.management: AdapterManagement
        self.tenants: TenantStore
        self.keys: KeyRing
        self.flusher: Flusher
        self.levels: LevelExchange | None
        self.app: FastAPI
        self.admin_app: FastAPI
        self.admin_url = ""

    @property
    def url(self) -> str:
        return self._started.result(30)

    def client(self, key: str = "none", retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=retries, timeout=30)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the server's loop and wait for the result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def make_key(self, tenant: str, **asked: Any) -> str:
        """A new key, which holds from now on."""
        _, text, _ = self.tenants.create_key(tenant, **asked, occupied=lambda _: None)
        self.call(self.keys.refresh())
        return text

    def step(self, tokens: int = 1) -> None:
        self._loop.call_soon_threadsafe(self.engine.step, tokens)

    def wait_until(self, condition: Callable[[FakeEngine], bool]) -> None:
        self.call(asyncio.wait_for(self.engine.wait_until(condition), 30))

    def start(self) -> None:
        self._thread.start()
        self._started.result(30)

    def request_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        """Stop and wait; safe to call twice."""
        if self._thread.is_alive():
            self.request_stop()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        setup = self._setup
        try:
            self.engine = FakeEngine(
                setup.behaviour,
                vocab_size=setup.vocab_size,
                max_model_len=setup.max_model_len,
                eos_token_ids=setup.eos_token_ids,
                modules=MODULES,
            )
            info = await self.engine.start()
            self.gate = gate_for(info, setup.max_open, setup.max_queued_tokens)
            plan = Assembly(
                base_name=BASE,
                data=DataFolder(self._folder / "data"),
                root=self.adapter_root,
                limits=Limits(max_rank=8),
                gate=self.gate,
                adapter_templates=setup.adapter_templates,
                parsers=setup.parsers,
                sources=source_policy(setup.allow_source, self.adapter_root),
                registry=setup.registry,
            )
            plan.data.make()
            parts = await assemble(self.engine, info, self._tokenizer, plan, lambda _: None)
            self.service, self.management = parts.service, parts.management
            self.tenants, self.keys, self.flusher = parts.tenants, parts.keys, parts.flusher
            self.levels = parts.levels
            self.app = create_app(
                self.service,
                self.management,
                Doors(
                    setup.api_key,
                    ring=self.keys,
                    metrics_key=setup.metrics_key,
                    behind_proxy=bool(setup.root_path),
                ),
                parts.usage,
                keep_alive_s=setup.keep_alive_s,
                cors_origins=setup.cors_origins,
                root_path=setup.root_path,
                strict_params=setup.strict_params,
                request_timeout_s=setup.request_timeout_s,
                tracing=setup.tracing,
                max_body=setup.max_body,
            )
            server = EdgeServer(EdgeConfig(self.app, port=0, timeout_graceful_shutdown=setup.drain_s))
            servers = [server]
            if setup.admin:
                self.admin_app = self._make_admin_app(parts)
                servers.append(EdgeServer(EdgeConfig(self.admin_app, port=0)))
            serving = [asyncio.create_task(one.serve()) for one in servers]
            while not all(one.started for one in servers):
                await asyncio.sleep(0.01)
            url, self.admin_url = _address(servers[0]), _address(servers[-1])
            self._started.set_result(url)
        except BaseException as error:
            self._started.set_exception(error)
            raise
        await self._stop.wait()
        for one in servers:
            one.should_exit = True
        await asyncio.gather(*serving)
        await parts.stop()
        await self.engine.stop()

    def _make_admin_app(self, parts: ServerParts) -> FastAPI:
        setup = self._setup
        doors = Doors(setup.api_key, ring=parts.keys, metrics_key=setup.metrics_key, admin_key=setup.admin_key)
        tenants = TenantManagement(parts.tenants, lambda: nullcontext(parts.registry), parts.keys)
        return create_admin_app(parts.service, tenants, doors, parts.usage)


def _address(server: EdgeServer) -> str:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://{host}:{port}"


def saying(tokenizer: Tokenizer, text: str, *, stepped: bool = False) -> Behaviour:
    """An engine that says this whatever it is asked."""
    ids = tokenizer.encode(text)
    return Behaviour(script=lambda _: ids, stepped=stepped)


Serve = Callable[..., LiveServer]
