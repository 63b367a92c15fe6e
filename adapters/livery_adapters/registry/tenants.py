"""What tenants keep in a registry and share with each other: a part of Registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from livery_adapters.registry import keeping
from livery_adapters.registry.records import Usage
from livery_adapters.registry.rows import printable
from livery_adapters.registry.verbs import Verbs


class TenantVerbs(Verbs):
    """Whose names are, and who else may use them."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around making or deleting a tenant: no name is settled meanwhile, here or in another process."""
        with self.database.write():
            yield

    def share(self, name: str, owner: str | None, grantee: str) -> tuple[str, ...]:
        """Let another tenant use an adapter, by its name in full, until that is deleted; whom it is shared with then.

        It must be `owner`'s (None: anybody's). Whether there is such a tenant isn't known here. Raises UnknownAdapter,
        InvalidShare.
        """
        with self.database.write() as connection:
            return keeping.share(connection, printable(name), owner, grantee)

    def unshare(self, name: str, owner: str | None, grantee: str) -> tuple[str, ...]:
        """Take `share` back. Raises UnknownAdapter."""
        with self.database.write() as connection:
            return keeping.unshare(connection, printable(name), owner, grantee)

    def shared_with(self, name: str) -> tuple[str, ...]:
        """The tenants that may use an adapter beside its owner, by name."""
        with self.database.read() as connection:
            return keeping.grantees(connection, printable(name))

    def usage(self, owner: str) -> Usage:
        """What a tenant keeps."""
        with self.database.read() as connection:
            return keeping.usage(connection, owner)

    def check_empty(self, tenant: str) -> None:
        """Raises TenantNotEmpty while there are adapters or aliases whose names begin with TENANT/."""
        with self.database.read() as connection:
            keeping.check_empty(connection, tenant)

    def forget_tenant(self, tenant: str) -> None:
        """Drop what is remembered of a tenant's deleted adapters, and what others share with it.

        Raises TenantNotEmpty.
        """
        with self.database.write() as connection:
            keeping.forget(connection, tenant)
