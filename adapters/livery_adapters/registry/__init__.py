"""Names, immutable versions and aliases of adapters, in SQLite or PostgreSQL. See `registry.Registry`."""

from livery_adapters.names import MIN_DIGEST_PREFIX, RESERVED_VERBS, validate_name
from livery_adapters.registry.briefs import Brief
from livery_adapters.registry.errors import (
    GenerationMismatch,
    InvalidAlias,
    NameTaken,
    NothingToRollBack,
    OwnedElsewhere,
    RegistryError,
    RegistryTooNew,
    RegistryUnavailable,
    RegistryUnreadable,
    UnknownAdapter,
    UnknownAlias,
    UnknownVersion,
)
from livery_adapters.registry.records import (
    AdapterRecord,
    Alias,
    AliasTarget,
    Card,
    NamedVersion,
    Page,
    State,
    Sticky,
    VersionFacts,
    VersionState,
)
from livery_adapters.registry.registry import Registry

__all__ = [
    "MIN_DIGEST_PREFIX",
    "RESERVED_VERBS",
    "AdapterRecord",
    "Alias",
    "AliasTarget",
    "Brief",
    "Card",
    "GenerationMismatch",
    "InvalidAlias",
    "NameTaken",
    "NamedVersion",
    "NothingToRollBack",
    "OwnedElsewhere",
    "Page",
    "Registry",
    "RegistryError",
    "RegistryTooNew",
    "RegistryUnavailable",
    "RegistryUnreadable",
    "State",
    "Sticky",
    "UnknownAdapter",
    "UnknownAlias",
    "UnknownVersion",
    "VersionFacts",
    "VersionState",
    "validate_name",
]
