"""What tenants, keys and shares may consist of. Everything that comes in from people or programs passes here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import get_args

import msgspec

from livery.tenancy.errors import InvalidTenancy
from livery.tenancy.records import EVERYTHING, Limits, Role
from livery_adapters.names import OPERATOR_TENANT

MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
MAX_LIMIT = 2**53  # what every JSON reader takes for a whole number
MAX_ALLOWED = 64  # words of an allow-list
MAX_LABEL = 80

TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,38}")
_ALLOWED = re.compile(r"(?=.)([A-Za-z0-9][A-Za-z0-9._:/@-]{0,127})?\*?")
_SPAN = re.compile(r"([0-9]{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def check_tenant_name(name: str) -> None:
    """Raises InvalidTenancy."""
    if not TENANT_NAME.fullmatch(name):
        raise InvalidTenancy(
            f"a tenant can't be called {name[:80]!r}: use up to 39 small letters, digits and -, beginning with a "
            "letter or digit",
            "name",
        )


def check_weight(weight: float) -> None:
    """Raises InvalidTenancy."""
    if not math.isfinite(weight) or not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise InvalidTenancy(
            f"the weight is {weight}; give one between {MIN_WEIGHT} and {MAX_WEIGHT:.0f}, where 1 is usual", "weight"
        )


def check_role(role: str, tenant: str) -> None:
    """Raises InvalidTenancy. An admin manages every tenant, so such a key is nobody's but the operator's."""
    if role not in get_args(Role):
        raise InvalidTenancy(f"there is no role {role[:80]!r}; give one of {', '.join(get_args(Role))}", "role")
    if role == "admin" and tenant != OPERATOR_TENANT:
        raise InvalidTenancy(
            f"an admin key manages every tenant, so it can't be {tenant}'s; give {tenant} a key of the role owner, or "
            f"make the admin key for the tenant {OPERATOR_TENANT}",
            "role",
        )


def check_allow(allow: Sequence[str]) -> None:
    """Raises InvalidTenancy."""
    if not 1 <= len(allow) <= MAX_ALLOWED:
        raise InvalidTenancy(f"an allow-list has 1 to {MAX_ALLOWED} words, and this one {len(allow)}", "allow")
    for word in allow:
        if not _ALLOWED.fullmatch(word):
            raise InvalidTenancy(
                f"{word[:160]!r} can't stand in an allow-list; give {', '.join(EVERYTHING)}, an adapter's name, or how "
                "names begin with * behind it",
                "allow",
            )


def check_label(label: str) -> None:
    """Raises InvalidTenancy: a label is shown on terminals and in logs."""
    if len(label) > MAX_LABEL or not (label.isprintable()):
        raise InvalidTenancy(
            f"the label {label[:MAX_LABEL]!r} can't be used; give up to {MAX_LABEL} printable characters", "label"
        )


def changed_limits(before: Limits, given: Mapping[str, int | None]) -> Limits:
    """`before` with what is given in its place; None takes a limit away. Raises InvalidTenancy."""
    for name, value in given.items():
        if name not in Limits.__struct_fields__:
            raise InvalidTenancy(
                f"there is no limit {name[:80]!r}; the limits are {', '.join(Limits.__struct_fields__)}", "limits"
            )
        if value is not None and not 0 <= value <= MAX_LIMIT:
            raise InvalidTenancy(f"the limit {name} is {value}; give a whole number from 0 on", f"limits.{name}")
    return msgspec.structs.replace(before, **given)


def expiry(text: str, now: float) -> float:
    """When something ends, as a Unix time: `30d`, `12h`, or a date or time in ISO 8601 (UTC where it says nothing).

    Raises InvalidTenancy, also for what has passed.
    """
    span = _SPAN.fullmatch(text)
    if span:
        ends = now + int(span[1]) * _SECONDS[span[2]]
    else:
        try:
            given = datetime.fromisoformat(text[:64])
        except ValueError:
            raise InvalidTenancy(
                f"{text[:64]!r} is no time; give a span such as 30d or 12h, or a date such as 2027-01-31", "expires"
            ) from None
        ends = (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
    check_expiry(ends, now)
    return ends


def check_expiry(ends: float | None, now: float) -> None:
    """Raises InvalidTenancy."""
    if ends is not None and not (math.isfinite(ends) and ends > now):
        raise InvalidTenancy("the key would have expired already; give a time to come, such as 30d", "expires")
