"""Whose a request is and what they may do: tenants, keys, roles, limits; and the doors that requests come through.

Knows no HTTP beyond the words a request carries, no engine beyond the seam, no adapter beyond its name.
"""

from livery.tenancy.doors import (
    Doors,
    InvalidApiKey,
    NotLocal,
    OpenDoor,
    Purpose,
    RoleNotAllowed,
    check_admin_binding,
    check_binding,
    is_loopback,
)
from livery.tenancy.errors import (
    Conflict,
    InvalidTenancy,
    TenancyError,
    UnknownKey,
    UnknownTenant,
)
from livery.tenancy.expiry import UsageExpiry
from livery.tenancy.keys import KeyRing
from livery.tenancy.levels import LevelExchange, LevelStore
from livery.tenancy.limits import LimitExceeded, RateLimiter
from livery.tenancy.management import TenantManagement, no_names
from livery.tenancy.meter import Flusher, Meter
from livery.tenancy.records import EVERYTHING, NO_LIMITS, OPERATOR, Key, Limits, Principal, Role, Tenant
from livery.tenancy.room import OverShare, Room
from livery.tenancy.secrets import MAX_KEY
from livery.tenancy.store import MAX_GRACE_S, TenantStore
from livery.tenancy.usage import UsageStore

__all__ = [
    "EVERYTHING",
    "MAX_GRACE_S",
    "MAX_KEY",
    "NO_LIMITS",
    "OPERATOR",
    "Conflict",
    "Doors",
    "Flusher",
    "InvalidApiKey",
    "InvalidTenancy",
    "Key",
    "KeyRing",
    "LevelExchange",
    "LevelStore",
    "LimitExceeded",
    "Limits",
    "Meter",
    "NotLocal",
    "OpenDoor",
    "OverShare",
    "Principal",
    "Purpose",
    "RateLimiter",
    "Role",
    "RoleNotAllowed",
    "Room",
    "TenancyError",
    "Tenant",
    "TenantManagement",
    "TenantStore",
    "UnknownKey",
    "UnknownTenant",
    "UsageExpiry",
    "UsageStore",
    "check_admin_binding",
    "check_binding",
    "is_loopback",
    "no_names",
]
