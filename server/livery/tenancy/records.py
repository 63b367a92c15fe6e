"""Tenants, their keys, and whom a request comes from, as plain values.

A tenant is a customer: adapters, quotas, caches and a fair share belong to it. A key belongs to one tenant and says
what its bearer may do. The tenant `default` is the operator's own: what no other tenant owns is its, and public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from livery_adapters.names import OPERATOR_TENANT

# A user asks models; an owner also manages the tenant's adapters and reads its usage; an admin may do everything.
Role = Literal["user", "owner", "admin"]
# What a key may ask: its tenant's adapters, those that others share with it, the operator's, the base model. Further
# words of an allow-list are names of adapters or aliases; a `*` at the end stands for any rest.
EVERYTHING = ("own", "shared", "public", "base")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Most of each thing at a time or per minute; None: as many as the server has room for.

    A request must keep within its key's limits and its tenant's. `queued_tokens` are prompt tokens of requests whose
    answer hasn't begun; `max_tokens` and `n` are of one request. The last four count what a tenant keeps: adapters,
    versions of all of them, bytes of their files, bytes of device memory; a key's are not looked at.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    queued_tokens: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    adapters: int | None = None
    versions: int | None = None
    adapter_bytes: int | None = None
    resident_bytes: int | None = None


NO_LIMITS = Limits()


class Tenant(msgspec.Struct, frozen=True):
    """A customer. `weight` is its share of the engine beside others' who are waiting as well; `created` a Unix time."""

    name: str
    weight: float = 1.0
    limits: Limits = NO_LIMITS
    created: float = 0.0
    disabled: bool = False


class Key(msgspec.Struct, frozen=True):
    """What is kept of a key: never the key, only `digest`, its SHA-256 in hex. Times are Unix times.

    `id` is a few characters that also begin the key, fit for logs.
    """

    id: str
    digest: str
    tenant: str
    role: Role = "user"
    allow: tuple[str, ...] = EVERYTHING
    limits: Limits = NO_LIMITS
    label: str = ""
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a request comes from. `key` is the key's id, None where no key is asked for.

    `created` is when its tenant was made, a Unix time. `anywhere`: may manage from other machines too, for the key says
    who it is; else from this machine only.
    """

    tenant: str = OPERATOR_TENANT
    role: Role = "admin"
    key: str | None = None
    allow: tuple[str, ...] = EVERYTHING
    weight: float = 1.0
    limits: Limits = NO_LIMITS  # of the key
    tenant_limits: Limits = NO_LIMITS
    anywhere: bool = False
    created: float = 0.0

    @property
    def account(self) -> str:
        """What belongs to this tenant and to none that had its name before or gets it later is kept under this."""
        return account_of(self.tenant, self.created)


def account_of(tenant: str, created: float) -> str:
    """A tenant of that name made then (0: it was never made here). There is one operator's; no name holds a `~`."""
    return f"{tenant}~{created:.6f}" if created and tenant != OPERATOR_TENANT else tenant


OPERATOR = Principal()  # anybody, on a server that asks for no key
