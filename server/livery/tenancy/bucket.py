"""A leaky bucket: what is used of a limit per minute, and what is reserved of it (see limits)."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

MINUTE_S = 60.0
SLACK = 1e-6  # tokens that sums of floating-point numbers may be off by
RESERVED_WAIT_S = 2.0  # at most, for what is only reserved to come back; by chance, so that not all ask again at once


class Rate(NamedTuple):
    """How far one limit per minute is used. `reset_s`: seconds until nothing of it is."""

    limit: int
    remaining: int
    reset_s: float


class Bucket:
    """What one key or tenant uses of something per minute. Amounts are in requests or tokens, times in seconds."""

    __slots__ = ("_at", "limit", "reserved", "untold", "used")

    def __init__(self) -> None:
        self.limit: int | None = None  # per minute; None: there is none
        self.used = 0.0  # and not leaked away
        self.untold = 0.0  # of what was used, whatever leaked away: see livery.tenancy.levels
        self.reserved = 0
        self._at = 0.0

    def leak(self, now: float) -> None:
        if self.limit is not None:
            self.used = max(0.0, self.used - (now - self._at) * self.limit / MINUTE_S)
        self._at = now

    def limit_to(self, limit: int | None) -> None:
        """From now on by this limit. One that comes finds nothing used, and one that goes leaves nothing to tell."""
        if (limit is None) != (self.limit is None):
            self.used = self.untold = 0.0
        self.limit = limit

    def use(self, amount: int) -> None:
        if self.limit is not None:
            self.used += amount
            self.untold += amount

    def hear(self, told: float, level: float) -> None:
        """So much was told, and so high is the level with it, as of now."""
        if self.limit is not None:
            self.untold = max(0.0, self.untold - told)
            self.used = level + self.untold

    def wait(self, amount: int) -> float:
        """Seconds until so much more fits beside what was used; 0: it fits now. Nothing always does."""
        if self.limit is None or not amount:
            return 0.0
        if self.limit <= 0:
            return math.inf
        over = self.used + min(amount, self.limit) - self.limit
        if over + self.reserved <= SLACK:
            return 0.0
        if over <= SLACK:
            return random.uniform(SLACK, RESERVED_WAIT_S)
        return over * MINUTE_S / self.limit

    @property
    def remaining(self) -> int:
        return max(0, math.floor((self.limit or 0) - self.used - self.reserved + SLACK))

    @property
    def rate(self) -> Rate | None:
        """How far the limit is used, if what is reserved is used at once; None without one."""
        if self.limit is None:
            return None
        return Rate(self.limit, self.remaining, (self.used + self.reserved) * MINUTE_S / max(1, self.limit))

    @property
    def idle(self) -> bool:
        return self.used <= 0 and not self.reserved
