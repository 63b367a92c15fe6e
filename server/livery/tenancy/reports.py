"""Reports of usage in words and JSON: what a caller may ask of them, a page of one, and the same as CSV.

    question = asked(principal, by=["day"], start="2026-11-01", end=None, ...)    # InvalidParameter
    page = page_of(question, store.report(question), principal)
    text = as_csv(page)

An operator sees everybody, an owner its tenant, a user what its own key used.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import product
from typing import Any

from livery.refusals import InvalidParameter
from livery.tenancy.meter import HOUR_S
from livery.tenancy.records import Principal
from livery.tenancy.usage import BYS, HOURS_A_DAY, MOST_TOLD, By, Line, Question
from livery_adapters.composition import MAX_PARTS, unweighted

Json = dict[str, Any]
FIRST_YEAR, LAST_YEAR = 1970, 9998  # within which an hour more or less, or another zone, is still a date
COUNTED = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")


def asked(
    principal: Principal,
    *,
    by: Iterable[str] = (),
    start: str | None = None,
    end: str | None = None,
    tenant: str | None = None,
    key: str | None = None,
    adapter: str | None = None,
    limit: int | None = None,
    after: str | None = None,
) -> Question:
    """What a report is to be about, within what the caller may see. Raises InvalidParameter."""
    if principal.role != "admin":
        _only(tenant, principal.tenant, "tenant")
        tenant = principal.tenant
    if principal.role == "user":
        _only(key, principal.key, "key")
        key = principal.key
    if limit is not None and not 1 <= limit <= MOST_TOLD:
        raise InvalidParameter(f"limit is {limit}; a page has 1 to {MOST_TOLD} lines.", "limit")
    for name, word in (("tenant", tenant), ("key", key), ("adapter", adapter)):
        if word is not None and not word.isprintable():  # databases don't take every character
            raise InvalidParameter(f"{name} is {word[:64]!a}, which no {name} is called.", name)
    groups = tuple(_group(one) for part in by for one in part.split(",") if one) or ("day",)
    if len(set(groups)) < len(groups):
        raise InvalidParameter(f"by names something twice: {', '.join(groups)}.", "by")
    return Question(
        by=groups,
        start=_hour(start, "from"),
        end=_hour(end, "to"),
        tenant=tenant,
        key=key,
        adapters=() if adapter is None else _in_full(adapter, tenant),
        after=_group_after(after, groups),
        limit=limit or MOST_TOLD,
    )


def page_of(question: Question, lines: Sequence[Line], principal: Principal) -> Json:
    """One page as JSON, names of adapters as the caller knows them."""
    told = lines[: question.limit]
    more = len(lines) > len(told)
    return {
        "object": "list",
        "by": list(question.by),
        "from": None if question.start is None else _time(question.start),
        "to": None if question.end is None else _time(question.end),
        "data": [_line(question.by, line, principal) for line in told],
        "has_more": more,
        "next_after": _cursor(told[-1].group) if more else None,
    }


def as_csv(page: Json, *, header: bool = True) -> str:
    """The lines of a page as CSV (RFC 4180), with a line of names before them."""
    columns = [*page["by"], *COUNTED]
    out = io.StringIO()
    writer = csv.writer(out)
    if header:
        writer.writerow(columns)
    writer.writerows([line[column] for column in columns] for line in page["data"])
    return out.getvalue()


def _line(by: Sequence[By], line: Line, principal: Principal) -> Json:
    told: Json = {name: getattr(line.counts, name) for name in COUNTED}
    return {**{str(one): _shown(one, value, principal) for one, value in zip(by, line.group, strict=True)}, **told}


def _shown(by: By, value: str | int, principal: Principal) -> str:
    if by == "hour":
        return _time(int(value))
    if by == "day":
        return _time(int(value) * HOURS_A_DAY)[:10]
    if by == "adapter" and principal.role != "admin":
        return "+".join(part.removeprefix(f"{principal.tenant}/") for part in str(value).split("+"))
    return str(value)


def _in_full(adapter: str, tenant: str | None) -> tuple[str, ...]:
    """What an adapter, or several that were added up, may be called in full: each a tenant's own or another's."""
    parts = adapter.split("+")[: MAX_PARTS + 1]  # of more there is no sum
    if tenant is None:
        return (unweighted(parts),)
    return tuple(unweighted(names) for names in product(*((part, f"{tenant}/{part}") for part in parts)))


def _only(given: str | None, own: str | None, param: str) -> None:
    if given is not None and given != own:
        raise InvalidParameter(
            f"{param} is {given[:64]!r}, and this key sees the usage of {own!r} alone; leave {param} out, or ask with "
            "a key that may see more.",
            param,
        )


def _group(word: str) -> By:
    if word not in BYS:
        raise InvalidParameter(f"by is {word[:64]!r}; it may be {', '.join(BYS)}, or several of these.", "by")
    return word


def _hour(text: str | None, param: str) -> int | None:
    """The hour since 1970 of a day or a moment; a part of an hour counts for all of it."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if not FIRST_YEAR <= moment.year <= LAST_YEAR:
            raise ValueError(moment)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidParameter(
            f"{param} is {text[:64]!r}; write a day or a moment in UTC, as in 2026-11-01 or 2026-11-01T08:00.", param
        ) from None
    return int(seconds // HOUR_S) if param == "from" else int(-(-seconds // HOUR_S))


def _time(hour: int) -> str:
    return datetime.fromtimestamp(hour * HOUR_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cursor(group: Sequence[str | int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(group)).encode()).decode()


def _group_after(cursor: str | None, by: Sequence[By]) -> tuple[str | int, ...]:
    """The group that a page ended with."""
    if cursor is None:
        return ()
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor))
    except (ValueError, binascii.Error, RecursionError):
        found = None
    wanted = [int if one in ("hour", "day") else str for one in by]
    if not isinstance(found, list) or [type(value) for value in found] != wanted:
        raise InvalidParameter("after is not what a page with the same by gave as next_after.", "after")
    if not all(value.isprintable() if isinstance(value, str) else abs(value) < 1 << 63 for value in found):
        raise InvalidParameter("after is not what a page with the same by gave as next_after.", "after")
    return tuple(found)
