"""The first Ctrl-C: noticed whenever it comes, acted on where what there is can be kept."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator

ENDING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopping() -> Iterator[asyncio.Event]:
    """An event that the first SIGINT or SIGTERM sets until the block ends; a second one does what it always does.

    It is set at once, also where the event loop is held up, which loop.add_signal_handler would wait for. In another
    than the main thread nothing sets it.
    """
    stop = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in ENDING}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def end(*_: object) -> None:
        give_back()
        stop.set()
        loop.call_soon_threadsafe(_wake)

    for number in ENDING:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        give_back()


def _wake() -> None:
    """A loop that waits looks at what there is to do only when something else happens."""
