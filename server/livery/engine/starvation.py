"""How long a process wanted for cores, which makes it slow and is no hang.

Linux counts for each thread how long it ran, and how long it was ready to run and didn't: the first two numbers of its
schedstat, in nanoseconds. Elsewhere nothing is known, and nothing left out.
"""

from __future__ import annotations

import threading
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

THREADS = Path("/proc/self/task")
BRIEF_S = 0.5  # of silence, for which no reason is looked for


class CoreTime(NamedTuple):
    """Of one thread, in nanoseconds."""

    ran: int
    waited: int


class Starvation:
    """For how long a step had to wait for cores: the longest that any one thread of its own was ready and didn't run.

    A step's own threads are the loop's, on which this is made, and those of torch, which Python knows nothing of. The
    others wait for the interpreter while a step computes; on one core they are woken for it and wait for the very step
    that hangs.
    """

    def __init__(self, threads: Path = THREADS) -> None:
        """`threads`: /proc/PID/task of this process."""
        self._threads = threads
        self._loop = threading.get_native_id()
        self._since = 0.0
        self._before: dict[str, CoreTime] = {}
        self._waited_s = 0.0

    def during(self, since: float) -> float:
        """Seconds of the step that began at `since`, and of what was between it and the last time this was asked.

        Whoever asks wants for cores as well: what the step waited before it is asked for the first time counts.
        """
        times = _core_times(self._threads, {one.native_id for one in threading.enumerate()} - {self._loop})
        if since != self._since:
            self._since, self._waited_s = since, 0.0
        self._waited_s += max((one.waited for one in _growth(self._before, times)), default=0) / 1e9
        self._before = times
        return self._waited_s


class Silence:
    """How long another process has said nothing, in seconds, and for how long of that it had no core.

    The longest that any one of its threads was ready and didn't run, less the longest that one ran: which of them
    speaks is its own affair, and on one core who waits for the interpreter waits for the very thread that holds it.
    """

    def __init__(self, threads: Path) -> None:
        """`threads`: /proc/PID/task of the process."""
        self.lasts_s = 0.0
        self.starved_s = 0.0
        self._threads = threads
        self._begun: dict[str, CoreTime] = {}

    def ends(self) -> None:
        """It spoke."""
        self.lasts_s = self.starved_s = 0.0
        self._begun = {}

    def goes_on(self, seconds: float) -> None:
        """It said nothing for so much longer."""
        self.lasts_s += seconds
        if self.lasts_s < BRIEF_S:
            return
        times = _core_times(self._threads)
        self._begun = self._begun or times
        grown = _growth(self._begun, times)
        waited, ran = (max((one[place] for one in grown), default=0) for place in (1, 0))
        self.starved_s = max(0, waited - ran) / 1e9


def _growth(before: dict[str, CoreTime], now: dict[str, CoreTime]) -> list[CoreTime]:
    """What each thread's times grew by that was there before."""
    both = now.keys() & before.keys()
    return [CoreTime(now[one].ran - before[one].ran, now[one].waited - before[one].waited) for one in both]


def _core_times(threads: Path, without: Container[int | None] = ()) -> dict[str, CoreTime]:
    """By the id of each thread of a process; none where it has ended, or the system doesn't say."""
    try:
        ids = [thread.name for thread in threads.iterdir() if int(thread.name) not in without]
    except OSError:
        return {}
    times = {one: _core_time(threads / one) for one in ids}
    return {one: time for one, time in times.items() if time is not None}


def _core_time(thread: Path) -> CoreTime | None:
    try:
        ran, waited = (thread / "schedstat").read_text().split()[:2]
    except (OSError, ValueError):  # it ended meanwhile, or this kernel doesn't count
        return None
    return CoreTime(int(ran), int(waited))
