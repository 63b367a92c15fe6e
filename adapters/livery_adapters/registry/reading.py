"""Questions to the registry, each within a transaction of the caller."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, exists, false, func, not_, select

from livery_adapters.names import MIN_DIGEST_PREFIX
from livery_adapters.registry.errors import UnknownAdapter, UnknownVersion
from livery_adapters.registry.records import AdapterRecord, Card, NamedVersion, Page, Reader, VersionFacts
from livery_adapters.registry.rows import RECORDS, STATE_OF, VERSIONS, printable, record_of, version_of
from livery_adapters.registry.schema import adapters, shares, versions

MAX_PAGE = 1000
_BATCH = 500  # values per query
_HEX = re.compile(r"[0-9a-f]{1,64}")

RETIRED = and_(adapters.c.retired, adapters.c.error.is_(None))
_SERVED = and_(versions.c.name == adapters.c.name, versions.c.number == adapters.c.active)


def row_of(connection: Connection, name: str) -> Row[Any] | None:
    """A name's row in `adapters`, whatever its state."""
    return connection.execute(select(adapters).where(adapters.c.name == name)).one_or_none()


def find(
    connection: Connection, name: str, *, include_retired: bool = False, reader: Reader | None = None
) -> AdapterRecord | None:
    conditions = [] if reader is None else [readable(adapters, reader)]
    row = connection.execute(RECORDS.where(adapters.c.name == name, *conditions)).one_or_none()
    if row is None or (row.state == "retired" and not include_retired):
        return None
    return record_of(row)


def get(
    connection: Connection, name: str, *, include_retired: bool = False, reader: Reader | None = None
) -> AdapterRecord:
    record = find(connection, name, include_retired=include_retired, reader=reader)
    if record is None:
        raise UnknownAdapter(name)
    return record


def matching(
    state: str | None, source: str | None, owner: str | None, include_retired: bool
) -> list[ColumnElement[bool]]:
    """The conditions of a page or count."""
    found: list[ColumnElement[bool]] = []
    if owner is not None:
        found.append(adapters.c.owner == printable(owner))
    if not include_retired and state != "retired":
        found.append(not_(RETIRED))
    if state is not None:
        found.append(STATE_OF.is_not_distinct_from(printable(state)))
    if source is not None:
        found.append(adapters.c.source == printable(source))
    return found


def named_like(name: ColumnElement[str], search: str | None) -> list[ColumnElement[bool]]:
    """The condition that `search` is part of a name, whatever the case."""
    return [func.lower(name).contains(printable(search).lower(), autoescape=True)] if search else []


def records(connection: Connection, names: Iterable[str]) -> list[AdapterRecord]:
    """The records with these names, in no order."""
    rows = (row for some in batches(names) for row in connection.execute(RECORDS.where(adapters.c.name.in_(some))))
    return [record_of(row) for row in rows]


def readable(table: Table, reader: Reader) -> ColumnElement[bool]:
    """The condition that a reader may use what it names; aliases aren't shared."""
    if reader.how == "owner":
        return table.c.owner == printable(reader.tenant)
    if table is not adapters:
        return false()
    granted = exists().where(shares.c.name == table.c.name, shares.c.grantee == printable(reader.tenant))
    return granted.correlate(table)


def check_limit(limit: int) -> None:
    """Raises ValueError for a limit out of range."""
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"a page has 1 to {MAX_PAGE} records, not {limit}")


def page(connection: Connection, after: str, limit: int, conditions: list[ColumnElement[bool]]) -> Page:
    """The next names by their bytes. Raises ValueError for a limit out of range."""
    check_limit(limit)
    query = RECORDS.where(adapters.c.name > after, *conditions).order_by(adapters.c.name).limit(limit + 1)
    rows = connection.execute(query).all()
    records = tuple(record_of(row) for row in rows[:limit])
    return Page(records, records[-1].name if len(rows) > limit else None)


def count(connection: Connection, conditions: list[ColumnElement[bool]]) -> int:
    query = select(func.count()).select_from(adapters.outerjoin(versions, _SERVED)).where(*conditions)
    return connection.execute(query).scalar_one()


def cards(connection: Connection, conditions: list[ColumnElement[bool]]) -> list[Card]:
    """Names with an active version, and nothing of what it holds: there may be ten thousands."""
    columns = (adapters.c.name, versions.c.digest, versions.c.added, adapters.c.owner)
    query = select(*columns).select_from(adapters.join(versions, _SERVED)).where(*conditions)
    return [Card(row.name, row.digest, row.added, row.owner) for row in connection.execute(query)]


def pinned(connection: Connection) -> tuple[AdapterRecord, ...]:
    query = RECORDS.where(adapters.c.pinned, adapters.c.active.is_not(None)).order_by(adapters.c.name)
    return tuple(record_of(row) for row in connection.execute(query))


def history(
    connection: Connection, name: str, after: int | None = None, limit: int | None = None
) -> tuple[NamedVersion, ...]:
    """The versions kept of a name, newest first: those older than number `after`, at most `limit` of them.

    Raises UnknownAdapter.
    """
    query = VERSIONS.where(versions.c.name == name).order_by(versions.c.number.desc()).limit(limit)
    if after is not None:
        query = query.where(versions.c.number < after)
    rows = connection.execute(query).all()
    if not rows:
        get(connection, name)
    return tuple(version_of(row) for row in rows)


def version(connection: Connection, name: str, wanted: str) -> NamedVersion:
    """One version by its number or at least 8 digits of its digest. Raises UnknownAdapter, UnknownVersion."""
    query = VERSIONS.where(versions.c.name == name)
    text = wanted.lower()
    if len(text) < MIN_DIGEST_PREFIX and re.fullmatch(r"[0-9]+", text):
        query = query.where(versions.c.number == int(text))
    elif len(text) >= MIN_DIGEST_PREFIX and _HEX.fullmatch(text):
        query = query.where(versions.c.digest.startswith(text))
    else:
        get(connection, name)
        raise UnknownVersion(name, wanted, f"give its number or at least {MIN_DIGEST_PREFIX} digits of its digest")
    rows = connection.execute(query.limit(2)).all()
    if not rows:
        get(connection, name)
        raise UnknownVersion(name, wanted, "list its versions to see which are kept")
    if len(rows) > 1:
        raise UnknownVersion(name, wanted, "several fit; give more digits of the digest")
    return version_of(rows[0])


def proven_facts(connection: Connection, weights: str, approximate: int, base_digest: str) -> VersionFacts | None:
    """What is known of files that were run on this base model, under whichever name and profile."""
    same = (versions.c.weights == weights) & (versions.c.approximate == approximate)
    proven = same & (versions.c.base_digest == base_digest) & (versions.c.state == "ready")
    row = connection.execute(VERSIONS.where(proven).order_by(versions.c.name).limit(1)).first()
    return version_of(row).facts if row is not None else None


def names_serving(connection: Connection, weights: Iterable[str]) -> list[str]:
    """The name of every active version whose files are among `weights`."""
    found: set[str] = set()
    for some in batches(set(weights)):
        query = select(adapters.c.name).select_from(adapters.join(versions, _SERVED))
        found.update(connection.execute(query.where(versions.c.weights.in_(some))).scalars())
    return sorted(found)


def weights_serving(connection: Connection, weights: Iterable[str]) -> dict[str, str]:
    """The files among `weights` that an active version has, and the first name of one."""
    found: dict[str, str] = {}
    for some in batches(set(weights)):
        query = select(versions.c.weights, func.min(adapters.c.name)).select_from(adapters.join(versions, _SERVED))
        rows = connection.execute(query.where(versions.c.weights.in_(some)).group_by(versions.c.weights))
        found.update((files, name) for files, name in rows)
    return found


def weights_in_use(connection: Connection) -> set[str]:
    return set(connection.execute(select(versions.c.weights).distinct()).scalars())


def batches(values: Iterable[str]) -> Iterator[list[str]]:
    """So many as a query takes."""
    remaining = iter(values)
    while some := list(islice(remaining, _BATCH)):
        yield some
