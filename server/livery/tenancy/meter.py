"""What is used, counted as it comes and written once a second: per hour, tenant, key and adapter version.

    meter = Meter()
    meter.count(Payer("acme", "k2x7q3ab", "acme/pirate", digest), Counts(completion_tokens=12))
    flusher = Flusher(meter, store.add, look=admission.account)
    flusher.start()
    await flusher.stop()        # writes the rest

What was counted and not written yet is a flush: rows, and a number that the database keeps together with them, so that
a flush of which nobody knows whether it was written is simply written again. A process that is killed loses what it
counted since its last flush: a second's worth. While the database can't be used counts stay here, at most MOST_ROWS of
them and some coarser ones. Nothing here holds a prompt or a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from livery.vitals import Vitals
from livery_adapters.registry import RegistryError

log = logging.getLogger("livery.usage")

HOUR_S = 3600
FLUSHER = "usage-writer"
FLUSH_S = 1.0
STOP_S = 5.0  # that the end of a server waits for its last flush
MOST_ROWS = 10_000
OTHER = "_other"  # in place of names that there was no room for

# What a database may do to a flush; it is kept and written again.
WRITE_ERRORS = (RegistryError, SQLAlchemyError, OSError)


class Payer(NamedTuple):
    """Whom a request is counted for. `tenant` is its account (Principal) or just its name, `key` the key's id, "" where
    none is asked for; `digest` the adapter version's.
    """

    tenant: str
    key: str
    adapter: str
    digest: str


class Row(NamedTuple):
    """What is counted together. `hour` counts hours since 1970 in UTC."""

    hour: int
    tenant: str
    key: str
    adapter: str
    digest: str


@dataclass(slots=True)
class Counts:
    """Tokens are those computed or found computed (`cached_tokens`, which are prompt tokens too)."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: Counts) -> None:
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens

    def __bool__(self) -> bool:
        return bool(self.requests or self.prompt_tokens or self.cached_tokens or self.completion_tokens)


@dataclass(frozen=True, slots=True)
class Flush:
    """Counts to be added to what the database has, once. `server` is one run of a server, `number` its flush's."""

    server: str
    number: int
    rows: Mapping[Row, Counts]


class Meter:
    """Counts that aren't written yet. Use from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.time, most_rows: int = MOST_ROWS) -> None:
        self._clock = clock
        self._most = most_rows
        self._rows: dict[Row, Counts] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def count(self, payer: Payer, counts: Counts) -> None:
        self._row(payer).add(counts)

    def take(self) -> dict[Row, Counts]:
        """Everything counted since the last time."""
        rows, self._rows = self._rows, {}
        return rows

    def _row(self, payer: Payer) -> Counts:
        """Where a request is counted: where there is no room for its own row, in its tenant's, or in one for all."""
        hour = int(self._clock() // HOUR_S)
        exact, by_tenant = Row(hour, *payer), Row(hour, payer.tenant, OTHER, OTHER, "")
        for row, most in ((exact, self._most), (by_tenant, 2 * self._most)):
            if (found := self._rows.get(row)) is not None:
                return found
            if len(self._rows) < most:
                return self._rows.setdefault(row, Counts())
            if row is exact and by_tenant not in self._rows:
                log.warning(
                    "usage of %s isn't told apart by key and adapter: %d rows wait to be written already",
                    payer.tenant,
                    len(self._rows),
                )
        return self._rows.setdefault(Row(hour, OTHER, OTHER, OTHER, ""), Counts())


@dataclass(slots=True)
class Flusher:
    """Writes what a meter counts, beside the event loop. `write` blocks; `look` has open requests count themselves."""

    meter: Meter
    write: Callable[[Flush], None]
    look: Callable[[], None]
    every_s: float = FLUSH_S
    server: str = field(default_factory=lambda: uuid.uuid4().hex)
    _number: int = 0
    _unsure: Flush | None = None  # that was or wasn't written
    _failing: bool = False
    _vitals: Vitals = field(default_factory=Vitals)
    # Of its own: usage is written however much others ask for.
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "livery-usage"))

    def start(self, vitals: Vitals | None = None) -> None:
        self._vitals = vitals or self._vitals
        self._vitals.run(FLUSHER, self._flush_often())

    async def stop(self) -> None:
        """Write the rest; what can't be written within STOP_S is lost, and the log says how much."""
        await self._vitals.stop(FLUSHER)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                while await self.flush() and len(self.meter):
                    pass
        lost = [*(self._unsure.rows.values() if self._unsure else ()), *self.meter.take().values()]
        if lost:
            total = Counts()
            for counts in lost:
                total.add(counts)
            log.error("usage could not be written at the end and is lost: %s", total)

    async def flush(self) -> bool:
        """Write what was counted. False where the database didn't take it: it is kept and written with the next."""
        self.look()
        if self._unsure is None:
            rows = self.meter.take()
            if not rows:
                return True
            self._number += 1
            self._unsure = Flush(self.server, self._number, rows)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.write, self._unsure)
        except WRITE_ERRORS as error:
            if not self._failing:
                log.warning("usage can't be written and is kept until it can (%s)", error)
            self._failing = True
            return False
        if self._failing:
            log.info("usage is written again")
        self._failing, self._unsure = False, None
        return True

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            await self.flush()
