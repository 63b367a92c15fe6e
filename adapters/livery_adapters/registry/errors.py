"""Everything the registry refuses or can't do. `code` is stable; the message names thing, value and remedy."""

from __future__ import annotations

from typing import ClassVar

from livery_adapters.names import FOLDER


class RegistryError(Exception):
    """Base of all."""

    code: ClassVar[str] = "registry_error"


class AboutName(RegistryError):
    """About one name, as `name` says it: whoever passes it on may put there what its caller calls it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return self.words(repr(self.name[:160]))

    def words(self, shown: str) -> str:
        """The message, with the name as it is to be shown."""
        raise NotImplementedError


class UnknownAdapter(AboutName):
    """No adapter has this name. `reason` says more where more is known."""

    code = "unknown_adapter"

    def __init__(self, name: str, reason: str | None = None) -> None:
        super().__init__(name)
        self.reason = reason

    def words(self, shown: str) -> str:
        return f"no adapter named {shown}" + (f": {self.reason}" if self.reason else "")


class UnknownVersion(AboutName):
    """The name's history has no such version, or several that fit."""

    code = "unknown_version"

    def __init__(self, name: str, version: str, reason: str) -> None:
        super().__init__(name)
        self.version = version
        self.reason = reason

    def words(self, shown: str) -> str:
        return f"{shown} has no version {self.version[:80]!r}: {self.reason}"


class UnknownAlias(AboutName):
    """No alias has this name."""

    code = "unknown_alias"

    def words(self, shown: str) -> str:
        return f"no alias named {shown}"


class GenerationMismatch(AboutName):
    """A compare-and-set lost. `actual` is 0 where the name doesn't exist."""

    code = "generation_mismatch"

    def __init__(self, name: str, expected: int, actual: int) -> None:
        super().__init__(name)
        self.expected = expected
        self.actual = actual

    def words(self, shown: str) -> str:
        found = f"is at generation {self.actual}" if self.actual else "does not exist"
        wanted = f"generation {self.expected} was expected" if self.expected else "it was expected not to exist"
        return f"{shown} {found} and {wanted}; read it again and decide anew"


class NoActiveVersion(AboutName):
    """The name is there, and no version of it is active whose configuration new weights could have."""

    code = "no_active_version"

    def words(self, shown: str) -> str:
        return (
            f"{shown} has no active version with weights, to take adapter_config.json from; activate one, or upload "
            "both files (multipart/form-data)"
        )


class ProfileChanged(AboutName):
    """New weights were to have the active version's profile, which is another one since they were on their way."""

    code = "profile_changed"

    def words(self, shown: str) -> str:
        return f"the profile of {shown} was changed while the weights were on their way in; push them again"


class OwnedElsewhere(AboutName):
    """The adapter folder and everybody else never own one name."""

    code = "owned_elsewhere"

    def __init__(self, name: str, owner: str) -> None:
        super().__init__(name)
        self.owner = owner

    def words(self, shown: str) -> str:
        remedy = "change it in the folder" if self.owner == FOLDER else "rename the subfolder"
        return f"{shown} belongs to {self.owner!r}; {remedy}, delete the adapter first or use another name"


class NameTaken(AboutName):
    """Adapters and aliases share one namespace. `kind` is what has the name."""

    code = "name_taken"

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name)
        self.kind = kind

    def words(self, shown: str) -> str:
        article = "an" if self.kind[0] in "aeiou" else "a"
        return f"{shown} is {article} {self.kind}; delete it first or use another name"


class OwnerChanged(AboutName):
    """Whose a name is changed while it was on its way in: a tenant was made or deleted. `now` owns it by now."""

    code = "owner_changed"

    def __init__(self, name: str, now: str) -> None:
        super().__init__(name)
        self.now = now

    def words(self, shown: str) -> str:
        return f"{shown} is a name of tenant {self.now!r} by now, which it was not when this began; add it again"


class NothingToRollBack(AboutName):
    """No version was active before the active one, or it is no longer kept."""

    code = "nothing_to_roll_back"

    def words(self, shown: str) -> str:
        return f"{shown} has no earlier active version that is still kept; activate one by its number"


class InvalidAlias(AboutName):
    """An alias must have targets that exist and positive weights."""

    code = "invalid_alias"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.reason = reason

    def words(self, shown: str) -> str:
        return f"alias {shown} is not possible: {self.reason}"


class InvalidShare(AboutName):
    """An adapter can't be shared like this."""

    code = "invalid_share"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.reason = reason

    def words(self, shown: str) -> str:
        return f"{shown} can't be shared: {self.reason}"


class QuotaExceeded(RegistryError):
    """A tenant would keep more than it may. `quota` is what of: adapters, aliases, versions or adapter_bytes."""

    code = "quota_exceeded"

    def __init__(self, quota: str, limit: int, kept: int) -> None:
        what = "bytes of adapters" if quota == "adapter_bytes" else quota
        super().__init__(
            f"with this, {kept} {what} would be kept, and the tenant's quota is {limit}; delete what isn't needed any "
            "more, or ask the operator for a larger quota"
        )
        self.quota = quota
        self.limit = limit


class TenantNotEmpty(RegistryError):
    """There are adapters or aliases below a tenant's name."""

    code = "tenant_not_empty"

    def __init__(self, tenant: str, examples: tuple[str, ...]) -> None:
        super().__init__(
            f"there are adapters or aliases below {tenant + '/'!r} ({', '.join(examples)}, ...); delete or rename them "
            "first"
        )
        self.tenant = tenant
        self.examples = examples


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
