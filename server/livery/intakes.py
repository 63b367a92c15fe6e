"""Adapters on their way in: how many at once, and threads of their own for sources that may take their time.

    intakes = Intakes()
    with intakes.claim("acme"):                          # TooManyIntakes, LimitExceeded
        origin = await intakes.run("acme", lambda interrupt: fetch(source, incoming, progress, interrupt=interrupt))

A tenant may have half of the places at most, so that slow sources and slow lines of one leave room for the others. The
operator, whose server it is, may have them all; so may everybody where no keys are asked for.

The event loop's own threads are for short work; one that waits for a network would hold up whoever asks the registry.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from livery.refusals import TooManyIntakes
from livery.tenancy import OPERATOR, LimitExceeded
from livery_adapters.background import step_back
from livery_adapters.fetching import Interrupt

T = TypeVar("T")

MAX_INTAKES = 8
RETRY_S = 5


class Intakes:
    """Counts intakes under way, from their first byte to the registry. Use from one event loop."""

    def __init__(self, limit: int = MAX_INTAKES) -> None:
        self._limit = limit
        self._claims: Counter[str] = Counter()
        self._left: dict[threading.Thread, str] = {}  # of intakes that were given up; they end at their next look

    @contextmanager
    def claim(self, tenant: str) -> Iterator[None]:
        """Around one intake on a tenant's account. Raises TooManyIntakes, and LimitExceeded beyond its half."""
        self._left = {thread: whose for thread, whose in self._left.items() if thread.is_alive()}
        held = self._claims + Counter(self._left.values())
        share = (self._limit + 1) // 2
        if tenant != OPERATOR.tenant and held[tenant] >= share:
            raise LimitExceeded(
                f"{held[tenant]} adapters of tenant '{tenant}' are on their way in, and a tenant may have {share} at "
                f"once. Please retry in {RETRY_S} s, or when one of them is done.",
                RETRY_S,
            )
        if held.total() >= self._limit:
            raise TooManyIntakes(self._limit, RETRY_S)
        self._claims[tenant] += 1
        try:
            yield
        finally:
            self._claims[tenant] -= 1
            self._claims += Counter()  # forgets who has none

    async def run(self, tenant: str, work: Callable[[Interrupt], T]) -> T:
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
            self._left[thread] = tenant
            raise


def _settle(done: Future[T], work: Callable[[Interrupt], T], interrupt: Interrupt) -> None:
    step_back()
    try:
        done.set_result(work(interrupt))
    except BaseException as error:  # noqa: BLE001  (it is the waiter's)
        done.set_exception(error)
