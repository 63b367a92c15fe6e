"""What the parts of a Registry have in common: one database, and who a name belongs to."""

from __future__ import annotations

from collections.abc import Callable, Collection

from livery_adapters.registry.database import Database
from livery_adapters.registry.errors import OwnerChanged


class Verbs:
    """Over one database. Every method is one transaction and may raise as Registry's do."""

    def __init__(
        self, database: Database, reserved: Collection[str] = (), owner_of: Callable[[str], str] | None = None
    ) -> None:
        """Use `Registry.open`, which brings the schema up to date and says what these are."""
        self.database = database
        self.reserved = frozenset(reserved)
        self._owner_of = owner_of

    def _check_owner(self, name: str, owner: str) -> None:
        """Whose a name was when its first byte came may be another's by now. Raises OwnerChanged.

        Called in a writing transaction, in which no tenant is made or deleted (`TenantVerbs.alone`).
        """
        now = owner if self._owner_of is None else self._owner_of(name)
        if now != owner:
            raise OwnerChanged(name, now)
