"""Whom the versions in device memory are there for, so that each tenant keeps within its own room.

A version counts in full for every tenant that made it come or runs requests under it, and for none else; a version that
several use is given up by one of them without leaving the others. So a tenant at its limit gets room for its next
version by giving up its own, never by others' leaving, and nobody's limit is reached by what others do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from livery.engine.base import Asker


class Claims:
    """The only writer of which tenant holds which versions in device memory, with how many running requests."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._users: dict[str, dict[str, int]] = {}  # version -> tenant -> its running requests
        self._bytes: dict[str, int] = {}  # of tenants
        self._held: dict[str, dict[str, None]] = {}  # tenant -> its versions, the least recently used first
        self._weights: dict[str, float] = {}

    def add(self, digest: str, nbytes: int, asker: Asker, requests: int) -> None:
        """A tenant takes so many bytes for a version, or goes on doing so, and runs so many requests more under it."""
        nbytes = self._sizes[digest] = max(1, nbytes)
        users = self._users.setdefault(digest, {})
        if asker.tenant not in users:
            users[asker.tenant] = 0
            self._bytes[asker.tenant] = self._bytes.get(asker.tenant, 0) + nbytes
        users[asker.tenant] += requests
        held = self._held.setdefault(asker.tenant, {})
        held.pop(digest, None)
        held[digest] = None
        self._weights[asker.tenant] = asker.weight

    def done(self, digest: str, tenant: str) -> None:
        """A running request of a tenant is done with a version, which stays the tenant's."""
        self._users[digest][tenant] -= 1

    def give_up(self, digest: str, tenant: str) -> bool:
        """A tenant no longer takes room for a version. Whether nobody does now."""
        del self._users[digest][tenant], self._held[tenant][digest]
        self._bytes[tenant] -= self._sizes[digest]
        if not self._bytes[tenant]:
            del self._bytes[tenant], self._weights[tenant], self._held[tenant]
        return not self._users[digest]

    def leave(self, digest: str) -> None:
        """The version has left device memory."""
        for tenant in list(self._users.get(digest, ())):
            self.give_up(digest, tenant)
        self._users.pop(digest, None)
        self._sizes.pop(digest, None)

    def first_with_room(
        self, askers: Iterable[Asker], nbytes: int, inclined: Callable[[str], Iterable[str]]
    ) -> tuple[Asker, list[str]] | None:
        """The first tenant that may have so many bytes more, and its `surplus`; None where all are at their limits."""
        found = ((one, self.surplus(one, nbytes, inclined(one.tenant) if one.limit else ())) for one in askers)
        return next(((asker, surplus) for asker, surplus in found if surplus is not None), None)

    def surplus(self, asker: Asker, nbytes: int, inclined: Iterable[str]) -> list[str] | None:
        """Versions that a tenant has to give up to keep to its limit with so many bytes more; None where it can't.

        `inclined` are versions in the order in which they go; those that its running requests use stay.
        """
        over = self._bytes.get(asker.tenant, 0) + nbytes - asker.limit if asker.limit else 0
        found = []
        for digest in inclined:
            if over <= 0:
                break
            if self._users.get(digest, {}).get(asker.tenant) == 0:
                found.append(digest)
                over -= self._sizes[digest]
        return found if over <= 0 else None

    def above_share(self, budget_bytes: int) -> set[str]:
        """Tenants whose versions take more than their part by weight of so many bytes, among those that take any."""
        weights = sum(self._weights.values())
        return {t for t, nbytes in self._bytes.items() if nbytes * weights > budget_bytes * self._weights[t]}

    def is_only_for(self, digest: str, tenants: Collection[str]) -> bool:
        """Whether a version is there for some of these tenants, and for no other."""
        users = self._users.get(digest)
        return users is not None and len(users) > 0 and all(tenant in tenants for tenant in users)

    def is_there_for(self, digest: str, tenant: str) -> bool:
        """Whether a tenant takes room for a version."""
        return tenant in self._users.get(digest, ())

    def versions_of(self, tenant: str) -> Iterable[str]:
        """What a tenant takes room for, the least recently used first."""
        return self._held.get(tenant, ())

    def bytes_of(self, tenant: str) -> int:
        return self._bytes.get(tenant, 0)

    def check_invariants(self, on_device: Collection[str]) -> None:
        """What is claimed is on the device, and bytes add up."""
        assert set(self._users) <= set(on_device), "room is counted for what isn't there"
        held = {(digest, tenant) for tenant, versions in self._held.items() for digest in versions}
        assert held == {(digest, tenant) for digest, users in self._users.items() for tenant in users}
        sums: dict[str, int] = {}
        for digest, users in self._users.items():
            for tenant in users:
                sums[tenant] = sums.get(tenant, 0) + self._sizes[digest]
        assert {t: count for t, count in self._bytes.items() if count} == sums, "tenants' bytes miscounted"


def too_large(nbytes: int, asker: Asker) -> str:
    """What a client is told whose adapter alone is more than its tenant may have on the device."""
    return (
        f"The adapter takes {nbytes} bytes of device memory, and all adapters of tenant {asker.tenant} together may "
        f"take {asker.limit}. Ask for a smaller one, or have the operator raise the tenant's limit resident_bytes."
    )
