"""An event loop that wakes when it was asked to: asyncio's own rounds its timers up to whole milliseconds on Linux.

epoll waits whole milliseconds. A request would leave up to one too late, and, as latencies count from the intended
time, the server would seem as much slower.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import sys

MOST_SELECTABLE = 1024  # select(2) knows no higher descriptors (FD_SETSIZE)


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop that keeps its timers to some 0.1 ms, where the system can do that."""
    if sys.platform == "linux":
        return asyncio.SelectorEventLoop(_PreciseEpoll())
    return asyncio.new_event_loop()


if sys.platform == "linux":

    class _PreciseEpoll(selectors.EpollSelector):
        """epoll for many sockets, and select, on epoll's own descriptor, for the time."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0 and self.fileno() < MOST_SELECTABLE:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)
