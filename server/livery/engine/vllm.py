"""The engine's seam over vLLM: AsyncLLM in this process, its EngineCore in one of its own.

    engine = SupervisedEngine(config, lambda told, lost: VllmEngine(told, options, progress, lost))

Names stay the server's: vLLM is told a digest, a number of ours and a directory with a plain LoRA adapter. None of its
HTTP is used. It is imported only when such an engine is started, and torch with it; both are then in this process,
which has neither with any other engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from livery import models
from livery.engine import vllm_args
from livery.engine.base import (
    NOBODY,
    AdapterRef,
    Asker,
    EngineConfig,
    EngineDead,
    EngineError,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    TokenDelta,
)
from livery.engine.figures import PromptRead
from livery.engine.hashed import with_digest
from livery.engine.vllm_adapters import VllmAdapters
from livery.engine.vllm_found import VllmRefused, preloaded, require_vllm
from livery.engine.vllm_process import VllmProcess
from livery.engine.vllm_queue import VllmQueue
from livery.engine.vllm_watch import StepCounts, logger_class
from livery.scratch import Scratch
from livery_adapters.base_model import BaseModel, BaseShapes
from livery_adapters.effect import AdapterEffect
from livery_adapters.model_files import weight_files

if TYPE_CHECKING:
    from livery.engine.vllm_requests import VllmRequests

log = logging.getLogger(__name__)

SERVER = "LIVERY_SERVER_PID"  # for livery.engine.vllm_worker, which imports nothing of this
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
        self._scratch: Scratch | None = None
        self._adapters: VllmAdapters | None = None
        self._queue: VllmQueue
        self._requests: VllmRequests
        self._room: vllm_args.AdapterRoom
        self._info: EngineInfo

    @property
    def pid(self) -> int:
        """vLLM's engine process, once started."""
        return self._process.pid

    # -- Engine --------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        found = require_vllm()
        try:
            config = await with_digest(self._config, self._progress)
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
        if self._scratch is not None:
            await asyncio.to_thread(self._scratch.remove)
            self._scratch = None

    def kill(self) -> None:
        self._process.kill()

    async def died(self) -> str:
        return await self._process.died()

    def generate(self, request: GenerationRequest, read: PromptRead | None = None) -> AsyncIterator[TokenDelta]:
        """How far a prompt had got that is given up is nothing that vLLM tells: `read` stays as it is."""
        return self._requests.generate(request)

    async def abort(self, request_id: str) -> None:
        await self._requests.abort(request_id)

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        self._process.check()
        return await self._held.load(adapter, asker)

    async def unload_adapter(self, digest: str) -> None:
        with suppress(EngineError):
            await self._held.unload(digest)

    async def keep_adapters(self, digests: tuple[str, ...]) -> None:
        with suppress(EngineError):
            await self._held.keep(digests)

    async def stats(self) -> EngineStats:
        device, host = await self._held.residents()
        stats = self._counts.stats(self._info.num_blocks, self._held.slots, self._queue.standings())
        return msgspec.structs.replace(
            stats,
            waiting=stats.waiting + self._queue.waiting,
            adapter_bytes=len(device) * self._queue.slot_bytes,
            host_adapter_bytes=self._held.bytes_of(host),
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

    def _build(self, config: EngineConfig, shapes: BaseShapes) -> Any:  # noqa: ANN401
        """Make the AsyncLLM, on a thread. Raises VllmRefused for what vLLM won't be started with, or EngineDead."""
        with _environment():
            logging.getLogger("vllm").setLevel(logging.DEBUG if config.log_level == "debug" else logging.WARNING)
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM

            options = self._options
            extra = vllm_args.parse_args(options.args, AsyncEngineArgs.__dataclass_fields__)
            self._room = vllm_args.room_for(
                options.ranks,
                config.max_running,
                loras=options.max_loras,
                cpu_loras=options.max_cpu_loras,
                rank=options.max_rank,
            )
            args = vllm_args.engine_args(config, self._room, shapes, extra, cpu=current_platform.is_cpu())
            try:
                wanted = AsyncEngineArgs(**args)
                # Its defaults differ by who asks: these are those of its own server.
                context = UsageContext.OPENAI_API_SERVER
                return AsyncLLM.from_engine_args(
                    wanted, usage_context=context, stat_loggers=[logger_class(self._counts)]
                )
            except (ValueError, TypeError, NotImplementedError, ImportError) as error:
                reason = vllm_args.words_of(error)
                raise VllmRefused(f"vLLM can't serve {config.model_path} under these settings: {reason}") from error
            except (RuntimeError, TimeoutError, OSError) as error:
                raise EngineDead(f"vLLM's engine did not start: {error}; the log above has the reason") from error

    async def _began(self, config: EngineConfig, shapes: BaseShapes, version: str) -> EngineInfo:
        from vllm.lora.request import LoRARequest

        from livery.engine.vllm_lora import LoraDirectories
        from livery.engine.vllm_requests import VllmRequests
        from livery.engine.vllm_sampling import Sampling

        llm = self._process.llm
        path = Path(config.model_path)
        slot_bytes = sum(await self.ask_workers("livery_slot_bytes"))  # it answers, and its workers know our methods
        info = self._info = info_of(llm.vllm_config, config, shapes, version, self._room.max_loras * slot_bytes)
        self._scratch = await asyncio.to_thread(Scratch, "livery-vllm-")
        directories = LoraDirectories(path, BaseModel(path.name, config.base_digest, shapes))
        self._queue = VllmQueue(info.max_running, self._room.max_loras, slot_bytes)
        self._adapters = VllmAdapters(self, directories, LoRARequest, self._scratch.path, self._room, self._queue)
        sampling = Sampling(info.eos_token_ids, getattr(llm.tokenizer, "eos_token_id", None))
        cost = 1 + slot_bytes / max(1, info.weight_bytes)
        self._requests = VllmRequests(self._process, self._adapters, self._queue, sampling, self._counts, cost)
        return info


def info_of(
    config: Any,  # noqa: ANN401
    told: EngineConfig,
    shapes: BaseShapes,
    version: str,
    adapter_bytes: int,
) -> EngineInfo:
    """What vLLM's own configuration says of it (`config` is its VllmConfig); `adapter_bytes` are of all its slots."""
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
        adapter_memory_bytes=adapter_bytes,
        weight_bytes=sum(file.stat().st_size for file in weight_files(path)),
        shapes=shapes,
        prefix_cache=bool(cache.enable_prefix_caching),
        decoder="vLLM",
        weights=str(model.quantization or ""),
    )


def _shapes_of(model: str) -> BaseShapes:
    from livery.engine.vllm_weights import shapes_of

    return shapes_of(model)


@contextmanager
def _environment() -> Iterator[None]:
    """Environment variables that vLLM reads, and its processes inherit, while it is started.

    Its processes are spawned: a fork would take this one's threads and locks along. It sends no usage statistics. Its
    log lines here are this server's, and those of its processes, from warnings on, come as they are on standard error.
    They end when this process does, however that ends (livery.engine.vllm_worker).
    """
    wanted = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
        SERVER: str(os.getpid()),
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
