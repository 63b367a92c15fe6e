"""How long a process wanted for cores, which makes it slow and is no hang.

Linux counts for each thread how long it ran, and how long it was ready to run and didn't: the first two numbers of its
schedstat, in nanoseconds. A wait is counted once it is over; one that goes on shows in its stat, by the state R of a
thread that hasn't run since. Elsewhere nothing is known, and nothing left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container
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

    def __init__(self, threads: Path = THREADS, now: Callable[[], float] = time.monotonic) -> None:
        """`threads`: /proc/PID/task of this process."""
        self._threads = _Threads(threads, now)
        self._loop = threading.get_native_id()
        self._since = 0.0
        self._before: dict[str, CoreTime] = {}
        self._waited_s = 0.0

    def during(self, since: float) -> float:
        """Seconds of the step that began at `since`, and of what was between it and the last time this was asked.

        Whoever asks wants for cores as well: what the step waited before it is asked for the first time counts.
        """
        times = self._threads.times({one.native_id for one in threading.enumerate()} - {self._loop})
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

    def __init__(self, threads: Path, now: Callable[[], float] = time.monotonic) -> None:
        """`threads`: /proc/PID/task of the process."""
        self.lasts_s = 0.0
        self.starved_s = 0.0
        self._threads = _Threads(threads, now)
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
        times = self._threads.times()
        self._begun = self._begun or times
        grown = _growth(self._begun, times)
        waited, ran = (max((one[place] for one in grown), default=0) for place in (1, 0))
        self.starved_s = max(0, waited - ran) / 1e9


class _Threads:
    """The threads of a process, each with its times up to now."""

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        self._folder, self._now = folder, now
        self._ready: dict[str, tuple[CoreTime, float]] = {}  # what is counted of each, and since when it is ready so

    def times(self, without: Container[int | None] = ()) -> dict[str, CoreTime]:
        """By the threads' ids; none where the process has ended, or the system doesn't say."""
        try:
            ids = [thread.name for thread in self._folder.iterdir() if int(thread.name) not in without]
        except OSError:
            return {}
        now, before, self._ready = self._now(), self._ready, {}
        times: dict[str, CoreTime] = {}
        for one in ids:
            if (counted := _counted(self._folder / one)) is None:
                continue
            pending_s = 0.0
            if _is_ready(self._folder / one):
                # Whoever had run, or slept and been woken, since the last look would have other times by now.
                known = before.get(one)
                since = known[1] if known is not None and known[0] == counted else now
                self._ready[one] = counted, since
                pending_s = now - since
            times[one] = CoreTime(counted.ran, counted.waited + round(pending_s * 1e9))
        return times


def _growth(before: dict[str, CoreTime], now: dict[str, CoreTime]) -> list[CoreTime]:
    """What each thread's times grew by that was there before."""
    both = now.keys() & before.keys()
    return [CoreTime(now[one].ran - before[one].ran, max(0, now[one].waited - before[one].waited)) for one in both]


def _counted(thread: Path) -> CoreTime | None:
    try:
        ran, waited = (thread / "schedstat").read_text().split()[:2]
    except (OSError, ValueError):  # it ended meanwhile, or this kernel doesn't count
        return None
    return CoreTime(int(ran), int(waited))


def _is_ready(thread: Path) -> bool:
    """Whether it runs or waits for a core."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[:1] == ["R"]
    except OSError:
        return False
