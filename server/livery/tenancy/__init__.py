"""Whose a request is and what they may do: tenants, keys, roles, limits; and the doors that requests come through.

Knows no HTTP beyond the words a request carries, no engine beyond the seam, no adapter beyond its name.
"""

from livery.tenancy.doors import Doors, InvalidApiKey, NotLocal, OpenDoor, check_binding, is_loopback
from livery.tenancy.limits import LimitExceeded, RateLimiter
from livery.tenancy.meter import Flusher, Meter
from livery.tenancy.records import EVERYTHING, NO_LIMITS, OPERATOR, Key, Limits, Principal, Role, Tenant
from livery.tenancy.room import OverShare, Room

__all__ = [
    "EVERYTHING",
    "NO_LIMITS",
    "OPERATOR",
    "Doors",
    "Flusher",
    "InvalidApiKey",
    "Key",
    "LimitExceeded",
    "Limits",
    "Meter",
    "NotLocal",
    "OpenDoor",
    "OverShare",
    "Principal",
    "RateLimiter",
    "Role",
    "Room",
    "Tenant",
    "check_binding",
    "is_loopback",
]
