"""How long the stages of some work took: `laps.lap("check")` ends one where the last one ended."""

from __future__ import annotations

import time
from collections.abc import Callable


class Laps:
    """Seconds by stage, in the order in which they ended; one that comes again adds to what it had."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """What was done since the last lap, or since this was made, was this stage."""
        now = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
