"""The verbs on aliases: a part of Registry."""

from __future__ import annotations

from collections.abc import Sequence

from livery_adapters.names import OPERATOR_TENANT, validate_name
from livery_adapters.registry import keeping, naming
from livery_adapters.registry.errors import UnknownAlias
from livery_adapters.registry.records import NO_QUOTA, Alias, AliasTarget, Quota, Reader, Sticky
from livery_adapters.registry.rows import printable
from livery_adapters.registry.verbs import Verbs


class AliasVerbs(Verbs):
    """Names that share their requests out to adapters."""

    def set_alias(
        self,
        name: str,
        targets: Sequence[AliasTarget],
        sticky: Sticky,
        expected_generation: int | None = None,
        *,
        owner: str = OPERATOR_TENANT,
        quota: Quota = NO_QUOTA,
    ) -> Alias:
        """Let a name share its requests out to adapters that its owner may use, or to the base model, by weight.

        Raises AdapterRefused (invalid_name), NameTaken, InvalidAlias, GenerationMismatch, QuotaExceeded, OwnerChanged.
        """
        validate_name(name, self.reserved, owner)
        with self.database.write() as connection, keeping.within(connection, owner, quota):
            self._check_owner(name, owner)
            return naming.set_alias(connection, name, targets, sticky, expected_generation, self.reserved, owner)

    def alias(self, name: str, reader: Reader | None = None) -> Alias:
        """Raises UnknownAlias."""
        found = self.find_alias(name, reader)
        if found is None:
            raise UnknownAlias(name)
        return found

    def find_alias(self, name: str, reader: Reader | None = None) -> Alias | None:
        """The alias, None when there is none of this name that `reader` may use (None: any)."""
        with self.database.read() as connection:
            return naming.find(connection, printable(name), reader)

    def aliases(self, owner: str | None = None, after: str = "", limit: int | None = None) -> tuple[Alias, ...]:
        """Aliases of a tenant (None: of everybody) by name, from behind `after` on, at most `limit` of them."""
        with self.database.read() as connection:
            return naming.page(connection, None if owner is None else printable(owner), printable(after), limit)

    def delete_alias(self, name: str, expected_generation: int | None = None, *, owner: str | None = None) -> None:
        """Raises UnknownAlias, GenerationMismatch."""
        with self.database.write() as connection:
            naming.delete_alias(connection, printable(name), expected_generation, owner)
