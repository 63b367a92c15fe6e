"""Rows to records and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, case, select

from livery_adapters.registry.records import AdapterRecord, NamedVersion, VersionFacts
from livery_adapters.registry.schema import adapters, versions

MAX_TEXT = 4000

_VERSION = [column.label(f"version_{column.name}") for column in versions.columns]

STATE_OF: ColumnElement[str] = case(
    (adapters.c.active.is_not(None), versions.c.state),
    (adapters.c.error.is_not(None), "failed"),
    (adapters.c.retired, "retired"),
    else_="registered",
)

# Every record with its active version, in one query.
RECORDS: Select[Any] = select(adapters, STATE_OF.label("state"), *_VERSION).select_from(
    adapters.outerjoin(versions, and_(versions.c.name == adapters.c.name, versions.c.number == adapters.c.active))
)
VERSIONS: Select[Any] = select(*_VERSION)


def record_of(row: Row[Any]) -> AdapterRecord:
    """A row of RECORDS."""
    return AdapterRecord(
        name=row.name,
        generation=row.generation,
        state=row.state,
        active=version_of(row) if row.active is not None else None,
        source=row.source,
        origin=row.origin,
        origin_digest=row.origin_digest,
        pinned=row.pinned,
        error=row.error,
        error_code=row.error_code,
        created=row.created,
        updated=row.updated,
        owner=row.owner,
    )


def version_of(row: Row[Any]) -> NamedVersion:
    """A row of VERSIONS, or of RECORDS with an active version."""
    facts = VersionFacts(
        digest=row.version_digest,
        weights=row.version_weights,
        approximate=row.version_approximate,
        peft_type=row.version_peft_type,
        base_digest=row.version_base_digest,
        nbytes=row.version_nbytes,
        coverage=json.loads(row.version_coverage),
        profile=json.loads(row.version_profile),
        parents=tuple((digest, weight) for digest, weight in json.loads(row.version_parents)),
        invocation=tuple(json.loads(row.version_invocation)),
        created=row.version_created,
    )
    return NamedVersion(row.version_name, row.version_number, facts, row.version_added, row.version_state)


def measured(facts: VersionFacts) -> dict[str, object]:
    """The columns of a version that depend on the base model it was checked against."""
    return {
        "peft_type": facts.peft_type,
        "base_digest": facts.base_digest,
        "nbytes": facts.nbytes,
        "coverage": json.dumps(_plain(facts.coverage)),
        "invocation": json.dumps(list(facts.invocation)),
    }


def columns_of(facts: VersionFacts) -> dict[str, object]:
    """The columns of a version that its facts fill."""
    return measured(facts) | {
        "digest": facts.digest,
        "weights": facts.weights,
        "approximate": facts.approximate,
        "profile": json.dumps(_plain(facts.profile)),
        "parents": json.dumps([list(parent) for parent in facts.parents]),
        "created": facts.created,
    }


def printable(value: str) -> str:
    """Text as any database takes it: no NUL, no half characters, not endless."""
    return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:MAX_TEXT]


def _plain(value: object) -> object:
    """Mappings as dicts, which is all JSON knows."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
