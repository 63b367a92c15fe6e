"""Old usage is deleted: hours that ended more than some days ago, a bounded number of rows in one transaction.

    expiry = UsageExpiry(store, days=400)
    expiry.start(vitals)            # now, and then once an hour
    await expiry.stop()

Several servers on one database may each do it: what is deleted is deleted once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from livery.tenancy.meter import HOUR_S, WRITE_ERRORS
from livery.tenancy.usage import HOURS_A_DAY, UsageStore
from livery.vitals import Vitals

log = logging.getLogger("livery.usage")

TASK = "usage-expiry"
EVERY_S = 3600.0  # one hour gets too old in an hour
BREATH_S = 0.1  # between two transactions, for whoever else writes


@dataclass(slots=True)
class UsageExpiry:
    """Deletes what is older than `days` days; 0 keeps everything."""

    store: UsageStore
    days: int
    clock: Callable[[], float] = time.time
    _vitals: Vitals = field(default_factory=Vitals)

    def start(self, vitals: Vitals | None = None) -> None:
        self._vitals = vitals or self._vitals
        if self.days:
            self._vitals.run(TASK, self._go_on())

    async def stop(self) -> None:
        await self._vitals.stop(TASK)

    async def expire(self) -> int:
        """Delete what is too old now; how many rows. Raises WRITE_ERRORS."""
        oldest = int(self.clock() // HOUR_S) - self.days * HOURS_A_DAY
        total = 0
        while deleted := await asyncio.to_thread(self.store.delete_before, oldest):
            total += deleted
            await asyncio.sleep(BREATH_S)
        return total

    async def _go_on(self) -> None:
        while True:
            try:
                if deleted := await self.expire():
                    log.info("%d rows of usage older than %d days were deleted (--usage-days)", deleted, self.days)
            except WRITE_ERRORS as error:
                log.warning("old usage can't be deleted, which is tried again in an hour (%s)", error)
            await asyncio.sleep(EVERY_S)
