"""The engine's seam over vLLM: AsyncLLM in this process, its EngineCore in one of its own.

    engine = SupervisedEngine(config, lambda told, lost: VllmEngine(told, options, progress, lost))

Names stay the server's: vLLM is told a digest, a number of ours and a directory with a plain LoRA adapter. None of its
HTTP is used. It is imported only when such an engine is started, and torch with it; both are then in this process,
which has neither with any other engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from livery import models
from livery.engine import vllm_args
from livery.engine.base import (
    ADAPTER_LOST,
    DEADLINE_EXCEEDED,
    NOBODY,
    AdapterLoadFailed,
    AdapterRef,
    Asker,
    EngineConfig,
    EngineDead,
    EngineError,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    RequestRefused,
    TokenDelta,
)
from livery.engine.figures import PromptRead
from livery.engine.vllm_adapters import VllmAdapters
from livery.engine.vllm_found import VllmRefused, preloaded, require_vllm
from livery.engine.vllm_process import VllmProcess
from livery.engine.vllm_watch import StepCounts, logger_class
from livery_adapters.base_model import BaseModel, BaseShapes
from livery_adapters.effect import AdapterEffect

if TYPE_CHECKING:
    from livery.engine.vllm_sampling import Sampling

log = logging.getLogger(__name__)

ANSWER_SECONDS = 0.5  # how long vLLM may take to answer before it is judged by when it was heard of last


class VllmOptions(msgspec.Struct, frozen=True):
    """What only this engine is told. `ranks` are those of the adapters that there are; 0 lets it choose."""

    args: tuple[str, ...] = ()  # KEY=VALUE, for vLLM itself
    ranks: tuple[int, ...] = ()
    max_loras: int = 0
    max_cpu_loras: int = 0
    max_rank: int = 0


DEFAULTS = VllmOptions()


class VllmEngine:
    """An Engine over vLLM. Use from one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        options: VllmOptions = DEFAULTS,
        progress: Callable[[str], None] = lambda _: None,
        lost: Callable[[str], EngineError] = EngineDead,
    ) -> None:
        """`lost` makes what requests are told once the engine is lost, of the reason."""
        self._config, self._options, self._progress = config, options, progress
        self._counts = StepCounts()
        self._process = VllmProcess(self._counts, config.hang_s, lost)
        self._folder: Path | None = None
        self._sampling: Sampling
        self._adapters: VllmAdapters | None = None
        self._room: vllm_args.AdapterRoom
        self._info: EngineInfo
        self._open: set[str] = set()
        self._aborting: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int:
        """vLLM's engine process, once started."""
        return self._process.pid

    # -- Engine --------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        found = require_vllm()
        try:
            config = self._config
            if not config.base_digest:
                self._progress("hashing the base model (once per file)")
                digest = await asyncio.to_thread(models.base_digest, Path(config.model_path))
                config = msgspec.structs.replace(config, base_digest=digest)
            self._progress("looking at the model's structure")
            shapes = await asyncio.to_thread(_shapes_of, config.model_path)
            self._progress(f"starting {found.distribution} {found.version}")
            await self._process.launch(lambda: self._build(config, shapes))
            return await self._began(config, shapes, found.version)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await self._process.stop()
        if self._adapters is not None:
            self._adapters.stop()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def kill(self) -> None:
        self._process.kill()

    async def died(self) -> str:
        return await self._process.died()

    async def generate(self, request: GenerationRequest, read: PromptRead | None = None) -> AsyncIterator[TokenDelta]:
        """How far a prompt had got that is given up is nothing that vLLM tells: `read` stays as it is."""
        from livery.engine.vllm_sampling import failed

        self._process.check()
        if request.request_id in self._open:
            raise RequestRefused(f"request id {request.request_id!r} is already in use")
        params = self._sampling.params(request)
        self._open.add(request.request_id)
        held = None
        try:
            if request.adapter is not None:
                try:
                    held = await self._held.hold(request.adapter)
                except AdapterLoadFailed as lost:
                    yield failed(request.request_id, str(lost), ADAPTER_LOST)
                    return
            async with aclosing(self._stream(request, params, held)) as stream:
                async for delta in stream:
                    yield delta
        finally:
            self._open.discard(request.request_id)
            if held is not None and request.adapter is not None:
                await self._held.release(request.adapter.digest)

    async def abort(self, request_id: str) -> None:
        if request_id in self._open:
            with suppress(EngineError):  # then there is nothing left to abort
                await self._process.call(self._process.llm.abort(request_id))

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        self._process.check()
        return await self._held.load(adapter)

    async def unload_adapter(self, digest: str) -> None:
        with suppress(EngineError):
            await self._held.unload(digest)

    async def keep_adapters(self, digests: tuple[str, ...]) -> None:
        with suppress(EngineError):
            await self._held.keep(digests)

    async def stats(self) -> EngineStats:
        device, host = await self._held.residents()
        return msgspec.structs.replace(
            self._counts.stats(self._info.num_blocks, self._held.log),
            resident_adapters=device,
            host_adapters=host,
            running_adapters=self._held.running,
            waiting_adapters=self._held.waited_for,
            pid=self.pid,
        )

    async def ready(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._process.call(self._process.llm.is_sleeping())
        except TimeoutError:  # in a long step: when it was heard of last says whether it gets on
            self._process.check()
            return self._process.ready
        return True

    # -- what adapters ask of vLLM -------------------------------------------------------------------

    async def add_lora(self, request: Any) -> None:  # noqa: ANN401  (vLLM's LoRARequest)
        await self._process.call(self._process.llm.add_lora(request))

    async def remove_lora(self, number: int) -> None:
        await self._process.call(self._process.llm.remove_lora(number))

    async def pin_lora(self, number: int) -> None:
        await self._process.call(self._process.llm.pin_lora(number))

    async def ask_workers(self, method: str, *args: object) -> list[Any]:
        found: list[Any] = await self._process.call(self._process.llm.collective_rpc(method, args=args))
        return found

    # -- inside --------------------------------------------------------------------------------------

    @property
    def _held(self) -> VllmAdapters:
        assert self._adapters is not None, "start comes first"
        return self._adapters

    async def _stream(self, request: GenerationRequest, params: Any, lora: Any) -> AsyncGenerator[TokenDelta]:  # noqa: ANN401
        from vllm.exceptions import VLLMClientError, VLLMServerError
        from vllm.inputs.engine import tokens_input

        from livery.engine.vllm_sampling import delta_of, failed

        loop, late = asyncio.get_running_loop(), asyncio.Event()
        timer = None
        if request.deadline_s:
            timer = loop.call_later(request.deadline_s, self._time_is_up, request.request_id, late)
        prompt = tokens_input(request.prompt_token_ids, cache_salt=cache_salt(request))
        outputs = self._process.llm.generate(prompt, params, request.request_id, lora_request=lora)
        first = True
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    delta = delta_of(output, request, first)
                    first = first and not delta.token_ids
                    if late.is_set() and delta.finish_reason == "abort":
                        delta = failed(request.request_id, _late(request), DEADLINE_EXCEEDED)
                    yield delta
                    if delta.finish_reason is not None:
                        return
        except VLLMClientError as error:
            raise RequestRefused(str(error)) from None
        except VLLMServerError as error:
            if self._process.lost_by(error):
                raise self._process.loss() from None
            log.warning("vLLM failed a request", exc_info=error)
            yield failed(request.request_id, "vLLM failed the request; its log has the reason")
        finally:
            if timer is not None:
                timer.cancel()

    def _time_is_up(self, request_id: str, late: asyncio.Event) -> None:
        late.set()
        aborting = asyncio.ensure_future(self.abort(request_id))
        self._aborting.add(aborting)
        aborting.add_done_callback(self._aborting.discard)

    def _build(self, config: EngineConfig, shapes: BaseShapes) -> Any:  # noqa: ANN401
        """Make the AsyncLLM, on a thread. Raises VllmRefused for what vLLM won't be started with, or EngineDead."""
        with _environment():
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM

            logging.getLogger("vllm").setLevel(logging.DEBUG if config.log_level == "debug" else logging.WARNING)
            options = self._options
            extra = vllm_args.parse_args(options.args, AsyncEngineArgs.__dataclass_fields__)
            self._room = vllm_args.room_for(
                options.ranks,
                config.max_running,
                loras=options.max_loras,
                cpu_loras=options.max_cpu_loras,
                rank=options.max_rank,
            )
            args = vllm_args.engine_args(config, self._room, shapes, cpu=current_platform.is_cpu()) | extra
            try:
                wanted = AsyncEngineArgs(**args)
                # Its defaults differ by who asks: these are those of its own server.
                context = UsageContext.OPENAI_API_SERVER
                return AsyncLLM.from_engine_args(
                    wanted, usage_context=context, stat_loggers=[logger_class(self._counts)]
                )
            except (ValueError, TypeError, NotImplementedError, ImportError) as error:
                reason = " ".join(str(error).split())
                raise VllmRefused(f"vLLM can't serve {config.model_path} under these settings: {reason}") from error
            except (RuntimeError, TimeoutError, OSError) as error:
                raise EngineDead(f"vLLM's engine did not start: {error}; the log above has the reason") from error

    async def _began(self, config: EngineConfig, shapes: BaseShapes, version: str) -> EngineInfo:
        from vllm.lora.request import LoRARequest

        from livery.engine.vllm_lora import LoraDirectories
        from livery.engine.vllm_sampling import Sampling

        llm = self._process.llm
        path = Path(config.model_path)
        self._info = info_of(llm.vllm_config, config, shapes, version)
        tokenizer_eos = getattr(llm.tokenizer, "eos_token_id", None)
        self._sampling = Sampling(self._info.eos_token_ids, tokenizer_eos)
        self._folder = Path(tempfile.mkdtemp(prefix="livery-vllm-"))
        base = BaseModel(path.name, config.base_digest, shapes)
        self._adapters = VllmAdapters(self, LoraDirectories(path, base), LoRARequest, self._folder, self._room)
        await self._held.residents()  # the engine answers, and its workers know our methods
        return self._info


def cache_salt(request: GenerationRequest) -> str:
    """What keeps apart the prefixes of tenants, of tenants that come to have the same name, and of callers' own salts.

    SHA-256 over length-prefixed fields. vLLM adds the adapter by itself; so does this.
    """
    digest = hashlib.sha256(b"livery vllm salt 1")
    adapter = request.adapter.digest if request.adapter is not None else ""
    for field in (request.tenant, request.account, adapter, request.cache_salt):
        data = field.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def info_of(config: Any, told: EngineConfig, shapes: BaseShapes, version: str) -> EngineInfo:  # noqa: ANN401
    """What vLLM's own configuration says of it (`config` is its VllmConfig)."""
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    path = Path(told.model_path)
    return EngineInfo(
        architecture=next(iter(model.hf_config.architectures or ["unknown"])),
        base_digest=told.base_digest,
        device=str(config.device_config.device_type),
        dtype=str(model.dtype).removeprefix("torch."),
        attention="vLLM's",
        kernels=f"vLLM {version}",
        vocab_size=model.get_vocab_size(),
        max_model_len=model.max_model_len,
        eos_token_ids=models.eos_token_ids(path),
        block_size=cache.block_size,
        num_blocks=cache.num_gpu_blocks or 0,
        max_batch_tokens=scheduler.max_num_batched_tokens,
        max_running=scheduler.max_num_seqs,
        adapter_memory_bytes=0,
        weight_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        shapes=shapes,
        prefix_cache=bool(cache.enable_prefix_caching),
        decoder="vLLM",
        weights=str(model.quantization or ""),
    )


def _shapes_of(model: str) -> BaseShapes:
    from livery.engine.vllm_weights import shapes_of

    return shapes_of(model)


def _late(request: GenerationRequest) -> str:
    return (
        f"The request's time of {request.deadline_s:.3g} seconds is up. Ask for less, allow more time, or try again "
        "when the server has less to do."
    )


@contextmanager
def _environment() -> Iterator[None]:
    """Environment variables that vLLM reads, and its processes inherit, while it is started.

    Its processes are spawned: a fork would take this one's threads and locks along. It sends no usage statistics. Its
    log lines here are this server's, and those of its processes, from warnings on, come as they are on standard error.
    """
    wanted = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
    }
    if libraries := _worth_preloading():
        wanted["LD_PRELOAD"] = ":".join(filter(None, [os.environ.get("LD_PRELOAD", ""), *libraries]))
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _worth_preloading() -> Sequence[str]:
    loaded = os.environ.get("LD_PRELOAD", "")
    return [library for library in preloaded() if Path(library).name not in loaded]
