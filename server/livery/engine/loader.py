"""Reads adapters off the step loop: one thread that turns files into packed weights.

The step loop hands in references and collects results; it never waits for a disk.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from livery.engine.base import AdapterRef
from livery.engine.lora.bank import PackedAdapter
from livery_adapters.refusal import AdapterRefused

LOAD_FAILED = "activation_failed"  # for what no check foresaw

log = logging.getLogger(__name__)

LOADER_NICENESS = 10


@dataclass(frozen=True, slots=True)
class Loaded:
    """The outcome of one load: packed weights, or why there are none, in words and in one."""

    digest: str
    packed: PackedAdapter | None
    seconds: float = 0.0
    error: str | None = None
    code: str = LOAD_FAILED


class Loader:
    """One thread, one queue in, one queue out. `read` raises on a bad adapter; `wake` tells the step loop."""

    def __init__(self, read: Callable[[AdapterRef], PackedAdapter], wake: Callable[[], None]) -> None:
        self._read = read
        self._wake = wake
        self._requests: queue.SimpleQueue[AdapterRef | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="adapter-loader", daemon=True)
        self._thread.start()

    def submit(self, adapter: AdapterRef) -> None:
        self._requests.put(adapter)

    def collect(self) -> list[Loaded]:
        """What was finished since the last call; never blocks."""
        results = []
        while True:
            try:
                results.append(self._results.get_nowait())
            except queue.Empty:
                return results

    def stop(self) -> None:
        """Finish the read under way and leave the rest."""
        self._stopping = True
        self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        _step_back()
        while (adapter := self._requests.get()) is not None and not self._stopping:
            self._results.put(self._load(adapter))
            self._wake()

    def _load(self, adapter: AdapterRef) -> Loaded:
        begun = time.perf_counter()
        try:
            packed = self._read(adapter)
            return Loaded(adapter.digest, packed, time.perf_counter() - begun)
        except AdapterRefused as refusal:
            return Loaded(adapter.digest, None, error=str(refusal), code=refusal.code)
        except Exception as error:  # noqa: BLE001 (boundary: one bad adapter must not end the loader)
            log.warning("adapter %s can't be loaded: %s", adapter.digest[:12], error)
            return Loaded(adapter.digest, None, error=str(error))


def _step_back() -> None:
    """Give way to the step loop where both want a core: what runs now comes before what is to run soon."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADER_NICENESS)
