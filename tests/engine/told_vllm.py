"""What vLLM is told of adapters, written down in its place, and held up or failed where a test says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from livery.engine.base import AdapterRef
from livery.engine.vllm_adapters import VllmAdapters
from livery.engine.vllm_args import AdapterRoom
from livery.engine.vllm_lora import Written
from livery.engine.vllm_queue import VllmQueue
from livery_adapters.effect import AdapterEffect


def ref(name: str) -> AdapterRef:
    return AdapterRef.of(name, f"/nowhere/{name}")


class ToldVllm:
    """vLLM's part and that of the directories' writer. `known` are the adapters that it has by now, by their numbers,
    `pins` those that it keeps, and `device` those in its slots, which a test changes as steps would.

    `fails` says what is raised of a method, once; a method in `held_up` waits until its event is set.
    """

    def __init__(self, folder: Path, host: int, slots: int = 2) -> None:
        room = AdapterRoom(max_loras=slots, max_cpu_loras=host, max_rank=16)
        self.folder = folder
        self.known: dict[int, str] = {}
        self.pins: set[int] = set()
        self.device: set[int] = set()
        self.fails: dict[str, Exception] = {}
        self.held_up: dict[str, asyncio.Event] = {}
        self.reached: dict[str, asyncio.Event] = {}
        self.queue = VllmQueue(8, slots, 1000)
        self.adapters = VllmAdapters(self, self, _made, folder, room, self.queue)

    def hold_up(self, method: str) -> asyncio.Event:
        """Have it wait for the event that this returns; `reached` says when it does."""
        self.held_up[method], self.reached[method] = asyncio.Event(), asyncio.Event()
        return self.held_up[method]

    @property
    def folders(self) -> set[str]:
        """Digests whose directories are there."""
        return {(each / "adapter").read_text() for each in self.folder.iterdir()}

    async def _comes(self, method: str) -> None:
        if method in self.held_up:
            self.reached[method].set()
            await self.held_up[method].wait()
        if method in self.fails:
            raise self.fails.pop(method)

    # -- what adapters ask for -------------------------------------------------------------------------

    def write(self, adapter: AdapterRef, out: Path, most: int) -> Written:
        out.mkdir()
        (out / "adapter").write_text(adapter.digest)
        if "write" in self.fails:
            raise self.fails.pop("write")
        return Written(most, 10, AdapterEffect({}, 10))

    async def add_lora(self, request: Any) -> None:
        await self._comes("add_lora")
        assert Path(request.path).is_dir(), "vLLM reads it, at any step"
        self.known[request.lora_int_id] = request.name
        self.device.add(request.lora_int_id)

    async def remove_lora(self, number: int) -> None:
        await self._comes("remove_lora")
        self.known.pop(number, None)
        self.device.discard(number)
        self.pins.discard(number)

    async def pin_lora(self, number: int) -> None:
        await self._comes("pin_lora")
        self.pins.add(number)

    async def ask_workers(self, method: str, *args: object) -> list[Any]:
        await self._comes(method)
        if method == "livery_adapters":
            return [(list(self.device), list(self.known))]
        return [[]]


def _made(name: str, number: int, path: str) -> Any:
    return SimpleNamespace(name=name, lora_int_id=number, path=path)
