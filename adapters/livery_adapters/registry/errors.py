"""Everything the registry refuses or can't do. `code` is stable; the message names thing, value and remedy."""

from __future__ import annotations

from typing import ClassVar


class RegistryError(Exception):
    """Base of all."""

    code: ClassVar[str] = "registry_error"


class UnknownAdapter(RegistryError):
    """No adapter has this name. `reason` says more where more is known."""

    code = "unknown_adapter"

    def __init__(self, name: str, reason: str | None = None) -> None:
        super().__init__(f"no adapter named {name[:160]!r}" + (f": {reason}" if reason else ""))
        self.name = name
        self.reason = reason


class UnknownVersion(RegistryError):
    """The name's history has no such version, or several that fit."""

    code = "unknown_version"

    def __init__(self, name: str, version: str, reason: str) -> None:
        super().__init__(f"{name[:160]!r} has no version {version[:80]!r}: {reason}")
        self.name = name
        self.version = version


class UnknownAlias(RegistryError):
    """No alias has this name."""

    code = "unknown_alias"

    def __init__(self, name: str) -> None:
        super().__init__(f"no alias named {name[:160]!r}")
        self.name = name


class GenerationMismatch(RegistryError):
    """A compare-and-set lost. `actual` is 0 where the name doesn't exist."""

    code = "generation_mismatch"

    def __init__(self, name: str, expected: int, actual: int) -> None:
        found = f"is at generation {actual}" if actual else "does not exist"
        wanted = f"generation {expected} was expected" if expected else "it was expected not to exist"
        super().__init__(f"{name[:160]!r} {found} and {wanted}; read it again and decide anew")
        self.name = name
        self.expected = expected
        self.actual = actual


class OwnedElsewhere(RegistryError):
    """The adapter folder and everybody else never own one name."""

    code = "owned_elsewhere"

    def __init__(self, name: str, owner: str) -> None:
        remedy = "change it in the folder" if owner == "folder" else "rename the subfolder"
        super().__init__(f"{name[:160]!r} belongs to {owner!r}; {remedy}, delete the adapter first or use another name")
        self.name = name
        self.owner = owner


class NameTaken(RegistryError):
    """Adapters and aliases share one namespace. `kind` is what has the name."""

    code = "name_taken"

    def __init__(self, name: str, kind: str) -> None:
        article = "an" if kind[0] in "aeiou" else "a"
        super().__init__(f"{name[:160]!r} is {article} {kind}; delete it first or use another name")
        self.name = name
        self.kind = kind


class NothingToRollBack(RegistryError):
    """No version was active before the active one, or it is no longer kept."""

    code = "nothing_to_roll_back"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name[:160]!r} has no earlier active version that is still kept; activate one by its number")
        self.name = name


class InvalidAlias(RegistryError):
    """An alias must have targets that exist and positive weights."""

    code = "invalid_alias"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"alias {name[:160]!r} is not possible: {reason}")
        self.name = name


class RegistryTooNew(RegistryError):
    """The data was written by a newer version."""

    code = "registry_too_new"

    def __init__(self, where: str, found: str, known: str) -> None:
        super().__init__(
            f"{where} has schema version {found}, and this version of Livery knows those up to {known}; install the "
            "version that wrote it or a newer one, or restore a backup made before the upgrade"
        )
        self.found = found
        self.known = known


class RegistryUnreadable(RegistryError):
    """What is there is damaged, or isn't a registry."""

    code = "registry_unreadable"


class RegistryUnavailable(RegistryError):
    """The database can't be reached or used right now."""

    code = "registry_unavailable"
