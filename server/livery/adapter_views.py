"""Adapters, versions and aliases as the API and the command line show them; sizes in bytes, times as Unix times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from livery_adapters.beside import unused
from livery_adapters.coverage import CoverageReport
from livery_adapters.profile import TEXTS
from livery_adapters.refusal import Limits
from livery_adapters.registry import Alias, NamedVersion

Json = dict[str, Any]
LONG = ("modules_by_path", "beside")  # hundreds of entries, and texts: for one adapter, never for a list of them


def page_json(rows: Sequence[Json], limit: int, key: str) -> Json:
    """At most `limit` of the rows found, of which one more was looked for; the next page begins behind their last."""
    shown = list(rows[:limit])
    more = len(rows) > limit
    return {"object": "list", "data": shown, "next_after": shown[-1][key] if more else None, "has_more": more}


def version_json(version: NamedVersion, *, active: bool, whole: bool = True) -> Json:
    """`whole` False leaves out what the coverage report says module by module, and a profile's texts."""
    facts = version.facts
    left_out = () if whole else LONG
    return {
        "version": version.number,
        "digest": facts.digest,
        "active": active,
        "proven": version.state == "ready",
        "peft_type": facts.peft_type,
        "task": facts.coverage.get("task", "generate"),
        "bytes": facts.nbytes,
        "created": int(version.added),
        "approximate": facts.approximate or None,
        "parents": [{"digest": digest, "weight": weight} for digest, weight in facts.parents],
        "profile": {name: value for name, value in facts.profile.items() if whole or name not in TEXTS},
        "unused": unused(facts.beside, facts.profile),
        "coverage": {name: value for name, value in facts.coverage.items() if name not in left_out},
    }


# What a tenant is told of an adapter that it may use and doesn't own: not what its profile says, nor whence it came.
TOLD_TO_OTHERS = (
    *("name", "object", "owner", "state", "generation", "source", "pinned", "updated"),
    *("version", "digest", "active", "proven", "peft_type", "task", "bytes", "created", "approximate"),
)


def told_to_others(adapter: Json) -> Json:
    """An adapter as those see it who may only use it."""
    return {field: adapter[field] for field in TOLD_TO_OTHERS if field in adapter}


def limits_json(limits: Limits) -> Json:
    """What an adapter may ask for, by the names of the knobs that say so."""
    return {"max_rank": limits.max_rank, "max_adapter_bytes": limits.max_weight_bytes}


def report_json(report: CoverageReport) -> Json:
    """The answer to a check that was passed."""
    return {"ok": True, "coverage": report.to_dict(), "unused": unused(report.beside, {})}


def alias_json(alias: Alias) -> Json:
    return {
        "name": alias.name,
        "object": "alias",
        "owner": alias.owner,
        "targets": [{"adapter": target.name, "weight": target.weight} for target in alias.targets],
        "sticky": alias.sticky,
        "generation": alias.generation,
        "updated": int(alias.updated),
    }
