"""Limits per minute that hold over all servers of one database: each tells what it used, and hears what all did.

    exchange = LevelExchange(limiter, LevelStore(database).exchange)
    exchange.start(vitals)          # once a second, where anything limited was used
    await exchange.stop()

The database has one level per key or tenant, which leaks as a server's own bucket does (limits), by the database's
clock: servers whose clocks differ agree. Between two exchanges a server goes by the last level and what it let in
itself, so no request waits for the database, and while that is away each goes on with what it knows. The price: of N
servers each lets in what it sees as free, so at worst N minutes' worth within the first second. What is too much then
is owed: nobody gets more before it has leaked away, so over longer times the rate holds. What a request only reserved,
and how many are under way at once, stays each server's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select, text, tuple_

from livery.tenancy.bucket import MINUTE_S
from livery.tenancy.clock import database_clock
from livery.tenancy.limits import Level, RateLimiter, Used
from livery.tenancy.meter import WRITE_ERRORS
from livery.tenancy.schema import levels
from livery.vitals import Vitals
from livery_adapters.registry.database import Database

log = logging.getLogger("livery.limits")

TASK = "limit-levels"
EVERY_S = 1.0
STOP_S = 5.0
FORGOTTEN_S = 86400.0  # a level that nobody added to: what long answers came to owe has leaked by then, or nearly so
BATCH = 200  # accounts of one transaction

# Both databases know it in these words.
_PUT = text(
    """
    INSERT INTO limit_levels (kind, name, requests, tokens, at) VALUES (:kind, :name, :requests, :tokens, :at)
    ON CONFLICT (kind, name) DO UPDATE SET
        requests = excluded.requests, tokens = excluded.tokens, at = excluded.at
    """
)


class LevelStore:
    """The levels in one database, whose tables are there. Any thread may use it; every call blocks."""

    def __init__(self, database: Database, clock: Callable[[Connection], float] = database_clock) -> None:
        self._database = database
        self._clock = clock

    def exchange(self, used: Sequence[Used]) -> list[Level]:
        """Add what was used, and get the levels that this makes. Raises RegistryUnavailable, RegistryUnreadable."""
        found: list[Level] = []
        for start in range(0, len(used), BATCH):
            with self._database.write() as connection:
                found += self._exchange(connection, used[start : start + BATCH])
        return found

    def _exchange(self, connection: Connection, used: Sequence[Used]) -> list[Level]:
        now = self._clock(connection)
        whose = tuple_(levels.c.kind, levels.c.name)
        rows = connection.execute(select(levels).where(whose.in_([(one.kind, one.name) for one in used])))
        before = {(row.kind, row.name): row for row in rows}
        found = []
        for one in used:
            row = before.get((one.kind, one.name))
            past = max(0.0, now - row.at) if row else 0.0
            found.append(
                Level(
                    one.kind,
                    one.name,
                    one.requests + _left(row.requests if row else 0.0, one.requests_per_minute, past),
                    one.tokens + _left(row.tokens if row else 0.0, one.tokens_per_minute, past),
                )
            )
        connection.execute(_PUT, [{**level._asdict(), "at": now} for level in found])
        connection.execute(levels.delete().where(levels.c.at < now - FORGOTTEN_S))
        return found


def _left(amount: float, per_minute: int | None, past_s: float) -> float:
    """What has not leaked away; nothing where there is no limit."""
    return 0.0 if per_minute is None else max(0.0, amount - past_s * per_minute / MINUTE_S)


@dataclass(slots=True)
class LevelExchange:
    """Tells what a limiter let in, and has it go by what all servers did. `exchange` blocks."""

    limiter: RateLimiter
    exchange: Callable[[Sequence[Used]], Sequence[Level]]
    every_s: float = EVERY_S
    _failing: bool = False
    _telling: bool = False  # also once the telling was cancelled, for its thread goes on
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _vitals: Vitals = field(default_factory=Vitals)

    def start(self, vitals: Vitals | None = None) -> None:
        self._vitals = vitals or self._vitals
        self._vitals.run(TASK, self._go_on())

    async def stop(self) -> None:
        """Tell the rest, if the database takes it soon and isn't just being told, which would count twice."""
        await self._vitals.stop(TASK)
        if not self._telling:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self.once()

    async def once(self) -> None:
        """One exchange, where there is anything to tell. What can't be told is told with the next."""
        async with self._turn:
            used = self.limiter.used()
            if not used:
                return
            self._telling = True
            try:
                heard = await asyncio.to_thread(self.exchange, used)
            except WRITE_ERRORS as error:
                if not self._failing:
                    log.warning("limits per minute are this server's alone until the database answers (%s)", error)
                self._failing, self._telling = True, False
                return
            if self._failing:
                log.info("limits per minute hold over all servers again")
            self._failing = self._telling = False
            self.limiter.hear(used, heard)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            await self.once()
