"""From how many processes a client sends: as many as it is told, or as many as it turns out to need."""

from __future__ import annotations

from math import ceil

from livery_loadtest.health import BUSY
from livery_loadtest.machine import usable_cores
from livery_loadtest.options import Options
from livery_loadtest.record import Run
from livery_loadtest.script import Script
from livery_loadtest.workers import divisible

AUTO = 0
TOKENS_A_PROCESS = 20_000  # streamed a second; what a core is sure to take (tests/benchmarks/load_client.py)


class Fanout:
    """`asked` processes for every run. AUTO: one, or as many as an open loop's rate asks for, and twice as many as
    long as one of them is too busy; at most one for each of `cores` (0: those of this machine).

    What one run turned out to need is what the next one begins with.
    """

    def __init__(self, asked: int = AUTO, cores: int = 0) -> None:
        self._asked = asked
        self._most = cores or usable_cores()
        self._needed = 1

    def first(self, script: Script, options: Options) -> int:
        """How many processes to begin a run with."""
        if self._asked:
            return self._asked
        rate = offered(script, options)
        return min(self._most, max(self._needed, ceil(rate / TOKENS_A_PROCESS)))

    def more(self, script: Script, options: Options, run: Run) -> int:
        """With how many processes a run has to be made anew; 0: it counts as it is.

        A run that changed the server (an adapter loaded for the first time, or anew, a command that ran) can't be made
        anew, and one that is folded took hours: these count as they are, with what is doubtful about them.
        """
        if self._asked or run.interrupted or BUSY not in run.health.reasons:
            return 0
        more = min(2 * run.health.processes, self._most, divisible(script, options))
        if more <= run.health.processes:
            return 0
        self._needed = max(self._needed, more)
        changed = script.changes or script.hooks or any(planned.cold for planned in script.requests)
        return 0 if changed or options.fold else more


def offered(script: Script, options: Options) -> float:
    """Tokens a second that an open loop asks for, on average; 0 for a closed loop, where the server decides."""
    times = [planned.at for planned in script.requests if planned.at is not None]
    seconds = options.duration_s or max(times, default=0.0)
    if options.streams or not seconds:
        return 0.0
    return sum(planned.max_tokens for planned in script.requests) / seconds
