"""How many connections each worker of a server has, in memory that all its processes share: --max-connections is the
server's, and which worker a client comes to is chance.

    descriptor = make(processes)                            # the parent; workers inherit it
    counts = Connections(descriptor, processes)
    others = counts.tell(number, 3)                         # a worker, on every connection that comes or goes
    counts.tell(number, 0)                                  # the parent, for one that is gone

Each writes its own place alone, the parent only that of a worker that has ended. Nobody waits for anybody: two who let
in the last one at the same moment both see the other and refuse.
"""

from __future__ import annotations

import mmap
import os
import tempfile

PLACE_BYTES = 4


def make(processes: int) -> int:
    """A descriptor of places for so many workers, all at 0."""
    with tempfile.TemporaryFile() as file:
        file.truncate(processes * PLACE_BYTES)
        return os.dup(file.fileno())


class Connections:
    """The places behind a descriptor of `make`."""

    def __init__(self, descriptor: int, processes: int) -> None:
        self._places = memoryview(mmap.mmap(descriptor, processes * PLACE_BYTES)).cast("I")

    def tell(self, number: int, count: int) -> int:
        """This worker has so many; how many the others have."""
        self._places[number] = count
        return sum(self._places) - count
