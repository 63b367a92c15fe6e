"""Changes of adapters, each within a writing transaction of the caller: nobody else writes meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from livery_adapters.identity import version_digest
from livery_adapters.names import FOLDER, OPERATOR_TENANT
from livery_adapters.registry import changes, reading
from livery_adapters.registry.errors import (
    GenerationMismatch,
    NameTaken,
    NothingToRollBack,
    OwnedElsewhere,
    ProfileChanged,
    UnknownAdapter,
    UnknownVersion,
)
from livery_adapters.registry.records import AdapterRecord, NamedVersion, VersionFacts, VersionState
from livery_adapters.registry.rows import columns_of, measured, printable
from livery_adapters.registry.schema import activations, adapters, aliases, shares, versions

ACTIVATIONS_KEPT = 50  # per name


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a version came: who gave it, from where, in what state; what becomes of the name; whose name and folder."""

    source: str
    origin: str
    state: VersionState
    pinned: bool | None
    activate: bool
    owner: str = OPERATOR_TENANT
    follower: str | None = None


def put(
    connection: Connection, name: str, facts: VersionFacts, arrival: Arrival, expected: int | None
) -> AdapterRecord:
    """See Registry.put."""
    row = reading.row_of(connection, name)
    check_generation(name, expected, _generation(row))
    if arrival.source == FOLDER and row is not None and row.folder_digest == facts.digest:
        return _seen_before(connection, row, facts, arrival)
    _check_free(connection, name, row, arrival.source, arrival.owner)
    row = row or _create(connection, name, arrival.source, arrival.owner)
    number, is_new = _remember(connection, row, facts, arrival.state)
    values: dict[str, object] = {
        "source": printable(arrival.source),
        "origin": printable(arrival.origin),
        "origin_digest": facts.weights,
        "retired": False,
        "owner": arrival.owner,
    }
    if arrival.source == FOLDER:
        values |= {"folder_digest": facts.digest, "follower": arrival.follower}
    if arrival.pinned is not None:
        values["pinned"] = arrival.pinned
    if is_new:
        values["last_number"] = number
    moves = arrival.activate and number != row.active and _may_replace(connection, row, number)
    if moves:
        values |= _activation(connection, row, number, facts.digest, row.activation)
    if is_new or moves:
        values["generation"] = row.generation + 1
    return _change(connection, name, values)


def check_put(connection: Connection, name: str, source: str, expected: int | None, owner: str) -> None:
    """See Registry.check_put."""
    row = reading.row_of(connection, name)
    check_generation(name, expected, _generation(row))
    if source != FOLDER:  # the folder may give once more what it gave before, whoever has the name by now
        _check_free(connection, name, row, source, owner)


def _seen_before(connection: Connection, row: Row[Any], facts: VersionFacts, arrival: Arrival) -> AdapterRecord:
    """The folder holds what it held: whatever was decided about the name since stays. Its errors are past."""
    known = connection.execute(
        select(versions.c.base_digest, versions.c.state).where(
            versions.c.name == row.name, versions.c.weights == facts.weights
        )
    ).all()
    _note_beside(connection, row.name, facts)
    stale = any(found.base_digest != facts.base_digest or found.state != arrival.state for found in known)
    if stale:
        _measure_again(connection, row.name, facts, arrival.state)
    values: dict[str, object] = {}
    if row.follower != arrival.follower:
        values["follower"] = arrival.follower
    if row.source == FOLDER and row.origin != printable(arrival.origin):
        values["origin"] = printable(arrival.origin)
    if stale or values or row.error is not None:
        return _change(connection, row.name, values)
    return reading.get(connection, row.name, include_retired=True)


def mark_ready(connection: Connection, name: str, digest: str) -> AdapterRecord:
    """See Registry.mark_ready."""
    record = reading.get(connection, name)
    match = (versions.c.name == name) & (versions.c.digest == digest)
    if not connection.execute(update(versions).where(match).values(state="ready")).rowcount:
        raise UnknownVersion(name, digest, "it is no longer kept; add it again")
    if record.active is not None and record.active.facts.digest == digest:
        return _change(connection, name, {})
    changes.note(connection, name)
    return record


def fail(
    connection: Connection,
    name: str,
    code: str,
    message: str,
    source: str,
    origin: str,
    owner: str = OPERATOR_TENANT,
    follower: str | None = None,
) -> None:
    """See Registry.fail."""
    if _is_alias(connection, name):
        return
    row = reading.row_of(connection, name)
    if not source and (row is None or row.retired):
        return  # a version was run that nobody keeps any more
    values: dict[str, object] = {"error": printable(message), "error_code": printable(code)}
    if row is not None and row.active is not None:
        if source and _is_anothers(row, source, follower):
            return  # it says nothing about the owner's adapter
    elif source:
        values |= {"source": printable(source), "origin": printable(origin)}
        if source == FOLDER:
            values["follower"] = follower
    if row is None:
        _create(connection, name, source, owner)
    _change(connection, name, values)


def _is_anothers(row: Row[Any], source: str, follower: str | None) -> bool:
    """Whether a name has its versions from elsewhere than `source`, or from another folder."""
    if source != FOLDER or row.source != FOLDER:
        return bool((source == FOLDER) != (row.source == FOLDER))
    return row.follower is not None and bool(row.follower != follower)


def forget_failure(connection: Connection, name: str) -> None:
    """See Registry.forget_failure."""
    row = reading.row_of(connection, name)
    if row is None or row.error is None:
        return
    if row.generation == 0:
        connection.execute(delete(adapters).where(adapters.c.name == name))
        changes.note(connection, name)
    else:
        _change(connection, name, {})


def activate(connection: Connection, name: str, version: str, expected: int | None, owner: str | None) -> AdapterRecord:
    """See Registry.activate."""
    row = _existing(connection, name, expected, owner)
    chosen = reading.version(connection, name, version)
    if chosen.number == row.active:
        return reading.get(connection, name)
    return _move(connection, row, chosen.number, chosen.facts.digest, row.activation)


def rollback(
    connection: Connection, name: str, expected: int | None, base_digest: str | None, owner: str | None
) -> AdapterRecord:
    """See Registry.rollback."""
    row = _existing(connection, name, expected, owner)
    number, step = _step_back(connection, row, base_digest)
    return _move(connection, row, number, step.digest, step.previous)


def rollback_target(connection: Connection, name: str, base_digest: str | None, owner: str | None) -> NamedVersion:
    """See Registry.rollback_target."""
    _, step = _step_back(connection, _existing(connection, name, None, owner), base_digest)
    return reading.version(connection, name, step.digest)


def _step_back(connection: Connection, row: Row[Any], base_digest: str | None) -> tuple[int, Row[Any]]:
    """The number of the version that was active before, and the row of that activation. Raises NothingToRollBack."""
    kept = select(versions.c.digest, versions.c.number).where(versions.c.name == row.name)
    if base_digest is not None:
        kept = kept.where(versions.c.base_digest == base_digest)
    numbers = {found.digest: found.number for found in connection.execute(kept)}
    logged = select(activations).where(activations.c.name == row.name)
    steps = {step.position: step for step in connection.execute(logged)}
    at = row.activation
    while at in steps:
        step = steps[at]
        number = numbers.get(step.digest)
        if number is not None and number != row.active:
            return number, step
        at = step.previous
    raise NothingToRollBack(row.name)


def retire(connection: Connection, name: str, expected: int | None, owner: str | None) -> AdapterRecord:
    """See Registry.retire."""
    row = _existing(connection, name, expected, owner)
    connection.execute(delete(versions).where(versions.c.name == name))
    connection.execute(delete(shares).where(shares.c.name == name))
    values = {"retired": True, "pinned": False, "active": None, "activation": None, "generation": row.generation + 1}
    return _change(connection, name, values)


def pin(connection: Connection, name: str, pinned: bool) -> AdapterRecord:
    """See Registry.pin."""
    record = reading.get(connection, name)
    if record.pinned == pinned:
        return record
    return _change(connection, name, {"pinned": pinned}, forgives=False)


def set_profile(
    connection: Connection, name: str, profile: Mapping[str, object], expected: int | None
) -> AdapterRecord:
    """See Registry.set_profile."""
    row = _existing(connection, name, expected)
    active = reading.get(connection, name).active
    if active is None:
        raise UnknownAdapter(name, "it has no active version to give a profile to; activate one first")
    old = active.facts
    digest = version_digest(old.weights, old.approximate, profile)
    facts = replace(old, digest=digest, profile=profile, created=time.time())
    number, is_new = _remember(connection, row, facts, active.state)
    if number == row.active:
        return reading.get(connection, name)
    if is_new:
        connection.execute(update(adapters).where(adapters.c.name == name).values(last_number=number))
    return _move(connection, row, number, digest, row.activation)


def trim(
    connection: Connection, keep: int, name: str | None = None, *, pinned_too: bool = False
) -> list[tuple[str, str]]:
    """See Registry.trim; with `name` of this name alone."""
    if keep < 0:
        raise ValueError(f"a history can keep 0 or more versions, not {keep}")
    age = func.row_number().over(partition_by=versions.c.name, order_by=versions.c.number.desc()).label("age")
    every = select(versions.c.name, versions.c.number, versions.c.digest, age)
    ranked = (every if name is None else every.where(versions.c.name == name)).subquery()
    query = (
        select(ranked.c.name, ranked.c.number, ranked.c.digest)
        .join(adapters, adapters.c.name == ranked.c.name)
        .where(ranked.c.age > keep, adapters.c.active.is_distinct_from(ranked.c.number))
        .order_by(ranked.c.name, ranked.c.number)
    )
    surplus = connection.execute(query if pinned_too else query.where(~adapters.c.pinned)).all()
    for row in surplus:
        connection.execute(delete(versions).where(versions.c.name == row.name, versions.c.number == row.number))
    changes.note(connection, *dict.fromkeys(row.name for row in surplus))
    return [(row.name, row.digest) for row in surplus]


# -- inside --------------------------------------------------------------------------------------------


def check_generation(name: str, expected: int | None, actual: int) -> None:
    """The compare of a compare-and-set. Raises GenerationMismatch."""
    if expected is not None and expected != actual:
        raise GenerationMismatch(name, expected, actual)


def check_profile(connection: Connection, name: str, expected: Mapping[str, object]) -> None:
    """Is the active version's profile still this one? Raises ProfileChanged."""
    record = reading.find(connection, name)
    if record is None or record.active is None or record.active.facts.profile != expected:
        raise ProfileChanged(name)


def _generation(row: Row[Any] | None) -> int:
    """The generation as callers see it: a retired name doesn't exist."""
    return 0 if row is None or row.retired else int(row.generation)


def _existing(connection: Connection, name: str, expected: int | None, owner: str | None = None) -> Row[Any]:
    row = reading.row_of(connection, name)
    if row is None or (row.retired and row.error is None) or (owner is not None and row.owner != printable(owner)):
        raise UnknownAdapter(name)
    check_generation(name, expected, _generation(row))
    return row


def _is_alias(connection: Connection, name: str) -> bool:
    return connection.execute(select(aliases.c.name).where(aliases.c.name == name)).first() is not None


def _check_free(connection: Connection, name: str, row: Row[Any] | None, source: str, owner: str) -> None:
    """Raises NameTaken, OwnedElsewhere."""
    if _is_alias(connection, name):
        raise NameTaken(name, "alias")
    if _generation(row) and row is not None and row.owner != owner:
        raise NameTaken(name, f"adapter of tenant {row.owner}")
    if _generation(row) and row is not None and (row.source == FOLDER) != (source == FOLDER):
        raise OwnedElsewhere(name, row.source)


def _create(connection: Connection, name: str, source: str, owner: str) -> Row[Any]:
    now = time.time()
    connection.execute(
        insert(adapters).values(
            name=name,
            generation=0,
            last_number=0,
            retired=False,
            pinned=False,
            source=printable(source),
            origin="",
            created=now,
            updated=now,
            owner=owner,
        )
    )
    row = reading.row_of(connection, name)
    assert row is not None
    return row


def _remember(connection: Connection, row: Row[Any], facts: VersionFacts, state: VersionState) -> tuple[int, bool]:
    """The number of a version in the name's history, and whether it is new there."""
    query = select(versions.c.number, versions.c.base_digest, versions.c.state).where(
        versions.c.name == row.name, versions.c.digest == facts.digest
    )
    known = connection.execute(query).one_or_none()
    if known is None:
        number = row.last_number + 1
        values = {"name": row.name, "number": number, "added": time.time(), "state": state} | columns_of(facts)
        connection.execute(insert(versions).values(values))
        return number, True
    _note_beside(connection, row.name, facts)
    if known.base_digest != facts.base_digest or (state == "ready" and known.state != state):
        _measure_again(connection, row.name, facts, state)
    return known.number, False


def _measure_again(connection: Connection, name: str, facts: VersionFacts, state: VersionState) -> None:
    """The same files were checked against another base model, or have been run by now."""
    same = (versions.c.name == name) & (versions.c.weights == facts.weights)
    same &= versions.c.approximate == facts.approximate
    other_base = versions.c.base_digest != facts.base_digest
    connection.execute(update(versions).where(same & other_base).values(measured(facts) | {"state": state}))
    if state == "ready":
        connection.execute(update(versions).where(same).values(state=state))


def _note_beside(connection: Connection, name: str, facts: VersionFacts) -> None:
    """What lies beside a version's files and isn't used may change while the version stays the same."""
    match = (versions.c.name == name) & (versions.c.digest == facts.digest)
    written = connection.execute(select(versions.c.coverage).where(match)).scalar_one_or_none()
    found = facts.coverage.get("beside")
    if written is None or found is None or (report := json.loads(written)).get("beside") == found:
        return
    connection.execute(update(versions).where(match).values(coverage=json.dumps({**report, "beside": found})))


def _may_replace(connection: Connection, row: Row[Any], number: int) -> bool:
    """Whether a version may become active in passing: one that was never run displaces none that was."""
    query = select(versions.c.number, versions.c.state).where(
        versions.c.name == row.name, versions.c.number.in_([number, row.active])
    )
    states = {found.number: found.state for found in connection.execute(query)}
    return states[number] == "ready" or states.get(row.active) != "ready"


def _activation(
    connection: Connection, row: Row[Any], number: int, digest: str, previous: int | None
) -> dict[str, object]:
    """Log that a version becomes active; what to set in `adapters` for it."""
    last = select(func.coalesce(func.max(activations.c.position), 0)).where(activations.c.name == row.name)
    position = connection.execute(last).scalar_one() + 1
    values = {"name": row.name, "position": position, "digest": digest, "previous": previous, "at": time.time()}
    connection.execute(insert(activations).values(values))
    old = (activations.c.name == row.name) & (activations.c.position <= position - ACTIVATIONS_KEPT)
    connection.execute(delete(activations).where(old))
    return {"active": number, "activation": position}


def _move(connection: Connection, row: Row[Any], number: int, digest: str, previous: int | None) -> AdapterRecord:
    values = _activation(connection, row, number, digest, previous)
    return _change(connection, row.name, values | {"generation": row.generation + 1})


def _change(connection: Connection, name: str, values: Mapping[str, object], *, forgives: bool = True) -> AdapterRecord:
    """Write to a name's row and log it. What was wrong before is past, unless `values` say what is wrong now."""
    cleared: dict[str, object] = {"error": None, "error_code": None} if forgives else {}
    values = cleared | {"updated": time.time()} | dict(values)
    connection.execute(update(adapters).where(adapters.c.name == name).values(values))
    changes.note(connection, name)
    return reading.get(connection, name, include_retired=True)
