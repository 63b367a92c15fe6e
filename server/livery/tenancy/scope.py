"""How the names that a caller uses and names in full relate. Pure functions of whom a request comes from and a name.

    candidates(principal, "pirate")     # acme/pirate of its own, then the operator's pirate, then one shared with it
    shown(principal, "acme/pirate")     # "pirate" to acme, "acme/pirate" to others
    allows(principal, "own", "pirate")  # whether the key may ask for it

A caller with the role admin uses names in full, and any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from livery.tenancy.doors import MAY, Purpose, RoleNotAllowed
from livery.tenancy.records import EVERYTHING, Principal
from livery_adapters.names import OPERATOR_TENANT, prefix_of
from livery_adapters.registry import NO_QUOTA, Quota, Reader, View

Kind = Literal["own", "shared", "public"]


class Candidate(NamedTuple):
    """What a name may mean: a name in full, and as whom the registry is asked for it (None: as one who sees all)."""

    full: str
    reader: Reader | None

    def may_be(self, owner: str) -> bool:
        """Whether it means the name if that is this tenant's and shared with nobody."""
        return self.reader is None or self.reader == Reader("owner", owner)


def check_role(principal: Principal, purpose: Purpose) -> None:
    """Raises RoleNotAllowed, whatever it is to be done to."""
    if principal.role not in MAY[purpose]:
        raise RoleNotAllowed(principal.role, purpose)


def prefix(principal: Principal) -> str:
    """What the caller leaves out of its own names."""
    return "" if principal.role == "admin" else prefix_of(principal.tenant)


def in_full(principal: Principal, name: str) -> str:
    """The full form of one of the caller's own names."""
    return prefix(principal) + name


def shown(principal: Principal, full: str) -> str:
    """What the caller calls a name."""
    return full.removeprefix(prefix(principal))


def candidates(principal: Principal, name: str) -> tuple[Candidate, ...]:
    """What the caller may mean by a name: the first that is there counts, whether the key allows it or not.

    They are looked for whatever the name is, so that what isn't there costs the same as what only others have.
    """
    if principal.role == "admin":
        return (Candidate(name, None),)
    own = Candidate(in_full(principal, name), Reader("owner", principal.tenant))
    return (own, *_of_others(principal.tenant, name))


def within(tenant: str, full: str) -> tuple[Candidate, ...]:
    """As whom a tenant may ask for a name in full, as its aliases have them."""
    return (Candidate(full, Reader("owner", tenant)), *_of_others(tenant, full))


def _of_others(tenant: str, full: str) -> tuple[Candidate, ...]:
    """What isn't a tenant's own; with the operator's tenant nothing is shared."""
    if tenant == OPERATOR_TENANT:
        return ()
    return Candidate(full, Reader("owner", OPERATOR_TENANT)), Candidate(full, Reader("shared", tenant))


def kind_of(principal: Principal, owner: str) -> Kind:
    """What something of this owner is to the caller."""
    return "own" if owner == principal.tenant else "public" if owner == OPERATOR_TENANT else "shared"


def owns(principal: Principal, owner: str) -> bool:
    """Whether the caller may know everything about what is this owner's; an admin may of all."""
    return principal.role == "admin" or owner == principal.tenant


def allows(principal: Principal, kind: Kind | Literal["base"], name: str) -> bool:
    """Whether the key may ask for what the caller calls `name`."""
    return allows_all(principal, kind) or any(_fits(name, pattern) for pattern in _patterns(principal))


def allows_all(principal: Principal, kind: Kind | Literal["base"]) -> bool:
    """Whether the key may ask for whatever is of this kind."""
    kinds = {"own", "public"} if kind == "own" and principal.tenant == OPERATOR_TENANT else {kind}
    return not kinds.isdisjoint(principal.allow)


def view(principal: Principal) -> View | None:
    """What the caller sees of all names; None: everything, by names in full."""
    if principal.role == "admin":
        return None
    words = set(principal.allow)
    return View(principal.tenant, "own" in words, "public" in words, "shared" in words, _patterns(principal))


def quota(principal: Principal) -> Quota:
    """How much the caller may add to what its tenant keeps. The operator isn't held to tenants' quotas."""
    if principal.role == "admin":
        return NO_QUOTA
    limits = principal.tenant_limits
    return Quota(adapters=limits.adapters, versions=limits.versions, nbytes=limits.adapter_bytes)


def owner_of(full: str, is_tenant: Callable[[str], bool]) -> str:
    """Whom a name in full belongs to: the tenant that its first part names, where there is one, or the operator."""
    first, slash, rest = full.partition("/")
    return first if slash and rest and first != OPERATOR_TENANT and is_tenant(first) else OPERATOR_TENANT


def _patterns(principal: Principal) -> tuple[str, ...]:
    return tuple(word for word in principal.allow if word not in EVERYTHING)


def _fits(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
