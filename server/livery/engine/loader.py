"""Work beside the step loop: a thread that reads adapters, and one that copies them to the device.

The step loop hands in jobs and collects results; it never waits for a disk. Copies have a thread of their own, as one
that takes a millisecond must not stand behind a read that takes a second.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from livery_adapters.background import step_back

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Done(Generic[Job, Result]):
    """A finished job: its result, or the error that it ended with; and how long it took."""

    job: Job
    result: Result | None
    error: Exception | None
    seconds: float


class Worker(Generic[Job, Result]):
    """One thread, one queue in, one queue out. `work` may raise; `wake` tells the step loop of a finished job."""

    def __init__(self, name: str, work: Callable[[Job], Result], wake: Callable[[], None]) -> None:
        self._work = work
        self._wake = wake
        self._jobs: queue.SimpleQueue[tuple[Job] | Tensor | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done[Job, Result]] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self._thread.name

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        self._jobs.put((job,))

    def free(self, memory: Tensor) -> None:
        """Give large memory back where it holds nobody up. The caller keeps no reference."""
        self._jobs.put(memory)

    def collect(self) -> list[Done[Job, Result]]:
        """What was finished since the last call; never blocks."""
        done = []
        while True:
            try:
                done.append(self._done.get_nowait())
            except queue.Empty:
                return done

    def stop(self) -> None:
        """Finish the job under way and leave the rest."""
        self._stopping = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        step_back()
        while (job := self._jobs.get()) is not None and not self._stopping:
            if isinstance(job, Tensor):
                _let_go(job)
            else:
                self._done.put(self._finish(*job))
                self._wake()
            del job

    def _finish(self, job: Job) -> Done[Job, Result]:
        begun = time.perf_counter()
        try:
            return Done(job, self._work(job), None, time.perf_counter() - begun)
        except Exception as error:  # noqa: BLE001 (boundary: one bad adapter must not end the loader)
            return Done(job, None, error, time.perf_counter() - begun)


def _let_go(memory: Tensor) -> None:
    """Unmap a tensor's memory without Python's global lock, which the step loop needs; what is locked frees itself."""
    if not memory.is_pinned():
        memory.set_(torch.empty(0, dtype=memory.dtype).untyped_storage())
