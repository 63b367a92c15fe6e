"""Adapters on their way in: how many at once, and threads of their own for sources that may take their time.

    intakes = Intakes()
    with intakes.claim():                                # TooManyIntakes beyond the limit
        origin = await intakes.run(lambda interrupt: fetch(source, incoming, progress, interrupt=interrupt))

The event loop's own threads are for short work; one that waits for a network would hold up whoever asks the registry.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from livery.refusals import TooManyIntakes
from livery_adapters.background import step_back
from livery_adapters.fetching import Interrupt

T = TypeVar("T")

MAX_INTAKES = 8


class Intakes:
    """Counts intakes under way, from their first byte to the registry. Use from one event loop."""

    def __init__(self, limit: int = MAX_INTAKES) -> None:
        self._limit = limit
        self._claims = 0
        self._left: set[threading.Thread] = set()  # of intakes that were given up; they end at their next look

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Around one intake. Raises TooManyIntakes."""
        self._left = {thread for thread in self._left if thread.is_alive()}
        if self._claims + len(self._left) >= self._limit:
            raise TooManyIntakes(self._limit)
        self._claims += 1
        try:
            yield
        finally:
            self._claims -= 1

    async def run(self, work: Callable[[Interrupt], T]) -> T:
        """Run in a thread that is interrupted when the caller is cancelled. Nothing waits for it then.

        A daemon thread: one that is stuck in a network must not hold up the end of the process.
        """
        interrupt = Interrupt()
        done: Future[T] = Future()

        done.set_running_or_notify_cancel()  # from here on it can't be cancelled, only left
        thread = threading.Thread(target=_settle, args=(done, work, interrupt), name="livery-intake", daemon=True)
        thread.start()
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            interrupt.set()
            self._left.add(thread)
            raise


def _settle(done: Future[T], work: Callable[[Interrupt], T], interrupt: Interrupt) -> None:
    step_back()
    try:
        done.set_result(work(interrupt))
    except BaseException as error:  # noqa: BLE001  (it is the waiter's)
        done.set_exception(error)
