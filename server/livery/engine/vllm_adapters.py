"""Which adapters vLLM has: converted, written for it, and told to it under ids of ours. Use from one event loop.

vLLM knows an adapter as a number and a directory. Numbers come from a counter and are never given again, so that none
ever means another adapter; the directory is there as long as the adapter is, as vLLM may read it again at any step.
There are no more of them than adapters that vLLM may have in host memory, but for those in use: they lie on a disk.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from livery.engine.base import AdapterLoadFailed, AdapterRef, Asker, EngineDead, EngineError, EngineRestarting
from livery.engine.vllm_args import AdapterRoom
from livery.engine.vllm_lora import NOT_APPLIED, Written
from livery.engine.vllm_process import CallFailed
from livery.engine.vllm_queue import VllmQueue
from livery.engine.vllm_watch import SlotCounts
from livery_adapters.background import step_back
from livery_adapters.effect import AdapterEffect
from livery_adapters.refusal import AdapterRefused

log = logging.getLogger(__name__)


class Loras(Protocol):
    """What vLLM is asked to do with adapters. All raise CallFailed where it refuses, and EngineError at its end."""

    async def add_lora(self, request: Any) -> None: ...  # noqa: ANN401

    async def remove_lora(self, number: int) -> None: ...

    async def pin_lora(self, number: int) -> None: ...

    async def ask_workers(self, method: str, *args: object) -> list[Any]:
        """What a method of livery.engine.vllm_worker says on each worker."""
        ...


class Directories(Protocol):
    """What writes an adapter as a plain LoRA directory (livery.engine.vllm_lora.LoraDirectories)."""

    def write(self, adapter: AdapterRef, out: Path, most: int) -> Written: ...


MakeRequest = Callable[[str, int, str], Any]  # name, id, path -> vLLM's LoRARequest


@dataclass(slots=True)
class _Held:
    request: Any
    folder: Path
    effect: AdapterEffect
    nbytes: int


class VllmAdapters:
    """The only writer of what vLLM is told of adapters."""

    def __init__(
        self,
        loras: Loras,
        directories: Directories,
        make: MakeRequest,
        folder: Path,
        room: AdapterRoom,
        queue: VllmQueue,
    ) -> None:
        """`folder` is an empty one for the adapters' directories."""
        self._loras, self._directories, self._make = loras, directories, make
        self._folder, self._room, self._queue = folder, room, queue
        self._ids = itertools.count(1)
        self._held: dict[str, _Held] = {}  # the last used one last
        self._by_id: dict[int, str] = {}
        self._loading: dict[str, asyncio.Task[_Held]] = {}  # until they are in _held
        self._loads: set[asyncio.Task[_Held]] = set()  # until they have made room as well
        self._users: Counter[str] = Counter()
        self._unwanted: set[str] = set()  # to be forgotten once nobody uses them
        self._kept: tuple[str, ...] = ()
        self._pinned: dict[str, bool] = {}  # False where vLLM was asked and nobody heard what came of it
        self._pinning: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "adapter-reader", initializer=step_back)
        self.slots = SlotCounts()

    @property
    def running(self) -> tuple[str, ...]:
        """Digests of open requests."""
        return tuple(self._users)

    @property
    def waited_for(self) -> tuple[str, ...]:
        """Digests of open requests that aren't read yet."""
        return tuple(digest for digest in self._users if digest not in self._held)

    def digests(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The adapters behind ids, as far as they are known still."""
        return tuple(self._by_id[adapter] for adapter in ids if adapter in self._by_id)

    def bytes_of(self, digests: Iterable[str]) -> int:
        """Of their weights."""
        return sum(self._held[digest].nbytes for digest in digests if digest in self._held)

    async def load(self, adapter: AdapterRef, asker: Asker) -> AdapterEffect:
        """Have it converted and taken in by vLLM, on the device as far as its asker may. Raises AdapterLoadFailed."""
        held = await self._ready(adapter)
        if adapter.digest not in self._held:  # unloaded meanwhile
            return held.effect
        stays = self._queue.bring(adapter.digest, asker)
        with suppress(EngineError):
            await self.leave_device([*self._queue.take_idle(), *([] if stays else [adapter.digest])])
        return held.effect

    def held(self, adapter: AdapterRef) -> Any | None:  # noqa: ANN401
        """vLLM's request for it, for one of ours, until `release`; None where it isn't there yet."""
        if (held := self._held.get(adapter.digest)) is None:
            return None
        self._unwanted.discard(adapter.digest)
        self._held[adapter.digest] = self._held.pop(adapter.digest)  # the last one now
        self.slots.asked(adapter.digest)
        self._users[adapter.digest] += 1
        return held.request

    async def hold(self, adapter: AdapterRef) -> Any:  # noqa: ANN401
        """As `held`, once it is there. Raises AdapterLoadFailed."""
        if request := self.held(adapter):
            return request
        self.slots.asked(adapter.digest)
        self._users[adapter.digest] += 1
        try:
            return (await self._ready(adapter)).request
        except BaseException:
            await self.release(adapter.digest)
            raise

    async def release(self, digest: str) -> None:
        """One of our requests has ended."""
        self._users[digest] -= 1
        if self._users[digest] <= 0:
            del self._users[digest]
            if digest in self._unwanted:
                await self._forget(digest)

    async def unload(self, digest: str) -> None:
        """Forget it once no request uses it. Unknown digests are ignored."""
        if digest in self._users or digest in self._loading:
            self._unwanted.add(digest)
        else:
            await self._forget(digest)

    async def keep(self, digests: tuple[str, ...]) -> None:
        """Pin these from now on, and no others: all but one of vLLM's slots at most, or nothing else could run.

        Where running requests have the slots, they are pinned as these end.
        """
        self._kept = digests
        pinning = self._pin_anew()
        if self._queue.pins_fit:
            await asyncio.wait({pinning})

    async def leave_device(self, digests: Iterable[str]) -> None:
        """Have these go from the device to the host, until their next request."""
        if ids := [self._held[digest].request.lora_int_id for digest in digests if digest in self._held]:
            await self._loras.ask_workers("livery_release", ids)

    async def residents(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Digests in device memory, and in host memory beside those, as vLLM's workers have them between two steps."""
        before = self.slots.device
        per_worker = await self._loras.ask_workers("livery_adapters")
        device, host = per_worker[0]
        resident = self.digests(device)
        self.slots.seen(resident, before)
        return resident, self.digests(set(host).difference(device))

    def stop(self) -> None:
        for task in (*self._loads, *([self._pinning] if self._pinning else [])):
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- inside --------------------------------------------------------------------------------------

    async def _ready(self, adapter: AdapterRef) -> _Held:
        self._unwanted.discard(adapter.digest)
        if (held := self._held.get(adapter.digest)) is not None:
            return held
        task = self._loading.get(adapter.digest)
        if task is None:
            task = asyncio.create_task(self._load(adapter), name=f"load {adapter.digest[:12]}")
            self._loading[adapter.digest] = task
            self._loads.add(task)
            task.add_done_callback(lambda done: self._loaded(adapter.digest, done))
        return await asyncio.shield(task)  # others may wait for it as well

    def _loaded(self, digest: str, task: asyncio.Task[_Held]) -> None:
        self._loads.discard(task)
        failed = task.cancelled() or task.exception() is not None  # its waiters have it, or are gone
        if failed and self._loading.get(digest) is task:
            del self._loading[digest]
            self._unwanted.discard(digest)

    async def _load(self, adapter: AdapterRef) -> _Held:
        begun = time.monotonic()
        number = next(self._ids)
        folder = self._folder / str(number)
        try:
            written = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._directories.write, adapter, folder, self._room.max_rank
            )
            self.slots.log.read(adapter.digest, time.monotonic() - begun)
            request = self._make(f"livery@{adapter.digest}", number, str(folder))
            begun = time.monotonic()
            await self._tell(request, adapter.digest)
        except Exception as error:  # boundary: whatever is wrong with one adapter is that one's alone
            self.slots.log.failed(adapter.digest)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise _as_failure(error, adapter.digest) from error
        self.slots.placed(adapter.digest, time.monotonic() - begun)
        held = self._held[adapter.digest] = _Held(request, folder, written.effect, written.nbytes)
        del self._loading[adapter.digest]  # who comes from now on finds it, or that it has left again
        self._by_id[number] = adapter.digest
        if adapter.digest in self._kept:
            self._pin_anew()
        if adapter.digest in self._unwanted and adapter.digest not in self._users:
            await self._forget(adapter.digest)
        await self._make_room(adapter.digest)
        return held

    async def _make_room(self, newest: str) -> None:
        """Of what vLLM has no room for even in host memory, the longest unused leaves the disk as well."""
        while len(self._held) > self._room.max_cpu_loras:
            # Looked for anew each time: while one is forgotten, a request may come for the next.
            stays = {*self._users, *self._kept, newest}
            idle = next((digest for digest in self._held if digest not in stays), None)
            if idle is None:
                return
            await self._forget(idle)

    async def _tell(self, request: Any, digest: str) -> None:  # noqa: ANN401
        """Have vLLM read it, and see that every part of it is applied, or nothing of it. Raises AdapterLoadFailed."""
        try:
            await self._add(request, digest)
        except Exception:
            with suppress(EngineError):  # its workers may have it by now, all or some
                await self._loras.remove_lora(request.lora_int_id)
            raise

    async def _add(self, request: Any, digest: str) -> None:  # noqa: ANN401
        try:
            await self._loras.add_lora(request)
        except CallFailed as failed:
            log.warning("vLLM refuses adapter %s: %s", digest[:12], failed)
            raise AdapterLoadFailed(
                f"vLLM refuses adapter {digest[:12]}, the server's log has its reason; serve it with --engine livery",
                NOT_APPLIED,
            ) from failed
        per_worker = await self._loras.ask_workers("livery_unapplied", request.lora_int_id)
        unapplied = sorted(set.intersection(*map(set, per_worker))) if per_worker else []
        if unapplied:
            raise AdapterLoadFailed(
                f"vLLM would leave out {len(unapplied)} modules of adapter {digest[:12]}, such as {unapplied[0]}: its "
                "model has no LoRA layer there. Start the server with --vllm-arg lora_target_modules=null, or serve "
                "it with --engine livery",
                NOT_APPLIED,
            )

    def _pin_anew(self) -> asyncio.Task[None]:
        """See that what is wanted is pinned, and nothing else."""
        wanted = [digest for digest in self._kept if digest in self._held][: self._room.max_loras - 1]
        self._queue.pin(wanted)
        before, self._pinning = (
            self._pinning,
            asyncio.create_task(self._pin(wanted, self._pinning), name="adapter-pins"),
        )
        self._pinning.add_done_callback(_log_failure)
        if before is not None:
            before.cancel()
        return self._pinning

    async def _pin(self, wanted: Sequence[str], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        await self._queue.pins_free()
        for digest in [one for one in self._pinned if one not in wanted]:
            await self._repin(digest, stays=False)
        for digest in wanted:
            if not self._pinned.get(digest):
                await self._repin(digest, stays=True)

    async def _repin(self, digest: str, *, stays: bool) -> None:
        """Pin one, or let go of it; what goes wrong with one is that one's. It may be forgotten at any step of this."""
        held = self._held.get(digest)
        if held is None:
            return
        number = held.request.lora_int_id
        try:
            if not stays:
                await self._loras.remove_lora(number)  # vLLM lets go of a pin only with the adapter
                self._pinned.pop(digest, None)
            if self._held.get(digest) is held:
                await self._loras.add_lora(held.request)  # it may have gone, as the least recently used
            if stays and self._held.get(digest) is held:
                self._pinned[digest] = False
                await self._loras.pin_lora(number)
            if stays and self._held.get(digest) is held:
                self._pinned[digest] = True
        except CallFailed as failed:
            log.warning("adapter %s can't be %s in vLLM: %s", digest[:12], "kept" if stays else "let go", failed)

    async def _forget(self, digest: str) -> None:
        held = self._held.pop(digest, None)
        if held is None and digest in self._loading:
            return  # it is unwanted still, and goes as soon as it is there
        self._unwanted.discard(digest)
        self._pinned.pop(digest, None)
        if held is None:
            return
        self._by_id.pop(held.request.lora_int_id, None)
        self.slots.forgotten(digest)
        self._queue.forget(digest)
        if digest in self._kept:
            self._pin_anew()
        with suppress(EngineError):
            await self._loras.remove_lora(held.request.lora_int_id)
        await asyncio.to_thread(shutil.rmtree, held.folder, ignore_errors=True)


def _as_failure(error: Exception, digest: str) -> Exception:
    """What is told of an adapter that can't be loaded; of an engine that is lost, what that says."""
    match error:
        case EngineDead() | EngineRestarting():
            return error
        case AdapterRefused() | AdapterLoadFailed():
            return AdapterLoadFailed(str(error), error.code)
        case OSError():
            return AdapterLoadFailed(f"its files can't be read: {error.strerror}")
    log.error("adapter %s can't be made ready for vLLM", digest[:12], exc_info=error)
    return AdapterLoadFailed(
        f"adapter {digest[:12]} can't be made ready for vLLM, by an unexpected {type(error).__name__}: the server's "
        "log has the rest"
    )


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("adapters can't be pinned: %s", error)
