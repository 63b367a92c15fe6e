"""What one tenant sees of all names: pages, counts and cards, each within a transaction of the caller.

A tenant's names are in up to three stretches of the table, each in the order in which the tenant knows them: its own,
the operator's, those shared with it. A page is the beginning of the three merged, so that it costs what it shows,
however many names others have.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, literal, not_, or_, select, true

from livery_adapters.names import OPERATOR_TENANT
from livery_adapters.registry import naming, reading
from livery_adapters.registry.records import Alias, Card, Page, View
from livery_adapters.registry.rows import printable
from livery_adapters.registry.schema import adapters, aliases, shares, versions

_STATED = adapters.outerjoin(versions, and_(versions.c.name == adapters.c.name, versions.c.number == adapters.c.active))


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Names that a condition fits, of which the tenant doesn't see the prefix."""

    prefix: str
    condition: ColumnElement[bool]


def page(
    connection: Connection,
    view: View,
    after: str,
    limit: int,
    conditions: Sequence[ColumnElement[bool]],
    search: str | None,
) -> Page:
    """See Registry.page."""
    reading.check_limit(limit)
    runs = []
    for stretch in _stretches(view, adapters):
        query = (
            select(adapters.c.name)
            .select_from(_STATED)
            .where(stretch.condition, adapters.c.name > stretch.prefix + after, *conditions)
            .where(*reading.named_like(_shown(stretch), search))
            .order_by(adapters.c.name)
            .limit(limit + 1)
        )
        names = connection.execute(query).scalars()
        runs.append([(name.removeprefix(stretch.prefix), name) for name in names])
    merged = list(heapq.merge(*runs, key=itemgetter(0)))
    chosen = merged[:limit]
    found = {record.name: record for record in reading.records(connection, [name for _, name in chosen])}
    return Page(tuple(found[name] for _, name in chosen), chosen[-1][0] if chosen and len(merged) > limit else None)


def count(connection: Connection, view: View, conditions: Sequence[ColumnElement[bool]], search: str | None) -> int:
    """See Registry.count."""
    return sum(
        connection.execute(
            select(func.count())
            .select_from(_STATED)
            .where(stretch.condition, *conditions, *reading.named_like(_shown(stretch), search))
        ).scalar_one()
        for stretch in _stretches(view, adapters)
    )


def cards(connection: Connection, view: View) -> list[Card]:
    """Adapters that take requests."""
    conditions = [stretch.condition for stretch in _stretches(view, adapters)]
    return [card for condition in conditions for card in reading.cards(connection, [condition])]


def every_alias(connection: Connection, view: View) -> list[Alias]:
    conditions = [stretch.condition for stretch in _stretches(view, aliases)]
    return [alias for condition in conditions for alias in naming.every(connection, condition)]


def _shown(stretch: _Stretch) -> ColumnElement[str]:
    """A name as the tenant knows it."""
    return func.substr(adapters.c.name, len(stretch.prefix) + 1)


def _stretches(view: View, table: Table) -> list[_Stretch]:
    own = "" if view.tenant == OPERATOR_TENANT else f"{printable(view.tenant)}/"
    name = table.c.name
    if not own:
        return [
            _Stretch(
                "", and_(table.c.owner == OPERATOR_TENANT, _allowed(name, "", view, whole=view.own or view.public))
            )
        ]
    hidden = or_(
        *(
            exists().where(other.c.name == literal(own).concat(name), kept).correlate(table)
            for other, kept in ((_OWN, not_(and_(_OWN.c.retired, _OWN.c.error.is_(None)))), (_OWN_ALIASES, true()))
        )
    )
    seen = [
        _Stretch(own, and_(table.c.owner == view.tenant, _allowed(name, own, view, whole=view.own))),
        _Stretch("", and_(table.c.owner == OPERATOR_TENANT, not_(hidden), _allowed(name, "", view, whole=view.public))),
    ]
    if table is adapters:
        granted = name.in_(select(shares.c.name).where(shares.c.grantee == printable(view.tenant)))
        seen.append(_Stretch("", and_(granted, not_(hidden), _allowed(name, "", view, whole=view.shared))))
    return seen


_OWN = adapters.alias("own")
_OWN_ALIASES = aliases.alias("own_aliases")


def _allowed(name: ColumnElement[str], prefix: str, view: View, *, whole: bool) -> ColumnElement[bool]:
    if whole:
        return true()
    conditions = []
    for wanted in view.names:
        plain = prefix + printable(wanted.removesuffix("*"))
        conditions.append(func.substr(name, 1, len(plain)) == plain if wanted.endswith("*") else name == plain)
    return or_(*conditions) if conditions else not_(true())
