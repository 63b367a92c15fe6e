"""What tenants keep in a registry and share with each other: a part of Registry."""

from __future__ import annotations

from livery_adapters.registry import keeping
from livery_adapters.registry.database import Database
from livery_adapters.registry.records import Usage
from livery_adapters.registry.rows import printable


class TenantsVerbs:
    """Over one database. Every method is one transaction and may raise as Registry's do."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def share(self, name: str, owner: str, grantee: str) -> tuple[str, ...]:
        """Let another tenant use an adapter, by its name in full, until that is deleted; whom it is shared with then.

        Whether there is such a tenant isn't known here. Raises UnknownAdapter, InvalidShare.
        """
        with self.database.write() as connection:
            return keeping.share(connection, printable(name), owner, grantee)

    def unshare(self, name: str, owner: str, grantee: str) -> tuple[str, ...]:
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
