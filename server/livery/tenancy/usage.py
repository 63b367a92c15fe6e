"""What was used, in the database: added to by servers, read by reports. Every call blocks.

store = UsageStore(database)
store.add(flush)                                    # once, however often it is called with the same flush
page = store.report(Question(by=("tenant", "day"), start=hour, end=hour + 24))
while store.delete_before(hour): ...                # old ones
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, func, literal, select, text, tuple_

from livery.tenancy.meter import Counts, Flush
from livery.tenancy.records import account_of
from livery.tenancy.schema import flushes, tenants, usage
from livery_adapters.registry.database import Database
from livery_adapters.registry.reading import batches

By = Literal["tenant", "key", "adapter", "version", "hour", "day"]
BYS: tuple[By, ...] = get_args(By)
MOST_TOLD = 1000  # rows of one page
MOST_DELETED = 1000  # rows of one transaction
HOURS_A_DAY = 24
# How long the number of a server's last flush is remembered after it: longer than any server keeps trying.
REMEMBERED_S = 30 * 86400.0

# Both databases know it in these words.
_ADD = text(
    """
    INSERT INTO usage
        (hour, tenant, key_id, adapter, digest, requests, prompt_tokens, cached_tokens, completion_tokens)
    VALUES
        (:hour, :tenant, :key_id, :adapter, :digest, :requests, :prompt_tokens, :cached_tokens, :completion_tokens)
    ON CONFLICT (hour, tenant, key_id, adapter, digest) DO UPDATE SET
        requests = usage.requests + excluded.requests,
        prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,
        cached_tokens = usage.cached_tokens + excluded.cached_tokens,
        completion_tokens = usage.completion_tokens + excluded.completion_tokens
    """
)

_GROUPS: dict[By, ColumnElement[int] | ColumnElement[str]] = {
    "tenant": usage.c.tenant,
    "key": usage.c.key_id,
    "adapter": usage.c.adapter,
    "version": usage.c.digest,
    "hour": usage.c.hour,
    "day": usage.c.hour // HOURS_A_DAY,
}


@dataclass(frozen=True, slots=True)
class Question:
    """What a report is about. Hours count from 1970 in UTC, `end` isn't included; None: from the beginning, until now.

    `after` is the last group of the page before. `adapters`: any of these names.
    """

    by: tuple[By, ...] = ("day",)
    start: int | None = None
    end: int | None = None
    tenant: str | None = None
    key: str | None = None
    adapters: tuple[str, ...] = ()
    after: tuple[str | int, ...] = ()
    limit: int = MOST_TOLD


@dataclass(frozen=True, slots=True)
class Line:
    """What one group used: its values in the order they were asked for; days and hours as numbers."""

    group: tuple[str | int, ...]
    counts: Counts


class UsageStore:
    """The usage in one database, whose tables are there. Any thread may use it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, flush: Flush) -> None:
        """Add what a server counted, unless that was done already. Raises RegistryUnavailable, RegistryUnreadable.

        What a tenant used that is deleted by now joins what it had used before, under NAME~CREATED.
        """
        with self._database.write() as connection:
            last = connection.scalar(select(flushes.c.number).where(flushes.c.server == flush.server))
            if last is not None and last >= flush.number:
                return
            if last is None:
                old = time.time() - REMEMBERED_S
                connection.execute(flushes.delete().where(flushes.c.at < old))
                connection.execute(flushes.insert().values(server=flush.server, number=flush.number, at=time.time()))
            else:
                mine = flushes.c.server == flush.server
                connection.execute(flushes.update().where(mine).values(number=flush.number, at=time.time()))
            names = _names(connection, {row.tenant for row in flush.rows})
            connection.execute(
                _ADD,
                [
                    {
                        "hour": row.hour,
                        "tenant": names.get(row.tenant, row.tenant),
                        "key_id": row.key,
                        "adapter": row.adapter,
                        "digest": row.digest,
                        "requests": counts.requests,
                        "prompt_tokens": counts.prompt_tokens,
                        "cached_tokens": counts.cached_tokens,
                        "completion_tokens": counts.completion_tokens,
                    }
                    for row, counts in flush.rows.items()
                ],
            )

    def delete_before(self, hour: int) -> int:
        """Delete rows of hours before this one, the oldest first and MOST_DELETED at most; how many there were.

        Raises RegistryUnavailable, RegistryUnreadable.
        """
        key = tuple(usage.primary_key.columns)
        oldest = select(*key).where(usage.c.hour < hour).order_by(*key).limit(MOST_DELETED)
        with self._database.write() as connection:
            return connection.execute(usage.delete().where(tuple_(*key).in_(oldest))).rowcount

    def report(self, question: Question) -> Sequence[Line]:
        """One page, ordered by its groups: at most `limit` lines, and one more where there are more.

        Raises RegistryUnavailable, RegistryUnreadable.
        """
        groups = [_GROUPS[one] for one in question.by]
        sums = [func.coalesce(func.sum(column), 0) for column in _COUNTED]
        query = select(*groups, *sums).where(*_conditions(question))
        if groups:
            query = query.group_by(*groups).order_by(*groups)
        if question.after:
            query = query.where(tuple_(*groups) > tuple_(*map(literal, question.after)))
        with self._database.read() as connection:
            found = connection.execute(query.limit(question.limit + 1)).all()
        size = len(groups)
        return [Line(tuple(row[:size]), Counts(*map(int, row[size:]))) for row in map(tuple[Any, ...], found)]


_COUNTED = (usage.c.requests, usage.c.prompt_tokens, usage.c.cached_tokens, usage.c.completion_tokens)


def _conditions(question: Question) -> list[ColumnElement[bool]]:
    found = []
    if question.start is not None:
        found.append(usage.c.hour >= question.start)
    if question.end is not None:
        found.append(usage.c.hour < question.end)
    if question.tenant is not None:
        found.append(usage.c.tenant == question.tenant)
    if question.key is not None:
        found.append(usage.c.key_id == question.key)
    if question.adapters:
        found.append(usage.c.adapter.in_(question.adapters))
    return found


def _names(connection: Connection, accounts: Collection[str]) -> dict[str, str]:
    """The names of those of these accounts whose tenants are there."""
    found: dict[str, str] = {}
    for some in batches({account.partition("~")[0] for account in accounts}):
        rows = connection.execute(select(tenants.c.name, tenants.c.created).where(tenants.c.name.in_(some)))
        found |= {account_of(row.name, row.created): row.name for row in rows}
    return found
