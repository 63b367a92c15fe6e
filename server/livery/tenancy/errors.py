"""Everything the keeping of tenants refuses. `code` is stable; the message names thing, value and remedy."""

from __future__ import annotations

from typing import ClassVar


class TenancyError(Exception):
    """Base of all. `param` is the field at fault, where it is one."""

    code: ClassVar[str] = "invalid_value"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidTenancy(TenancyError):
    """A name, weight, limit, role, word of an allow-list or time that can't be."""


class UnknownTenant(TenancyError):
    """No tenant has this name."""

    code = "unknown_tenant"

    def __init__(self, name: str) -> None:
        super().__init__(f"no tenant named {name[:80]!r}; `livery tenants ls` shows those there are")


class UnknownKey(TenancyError):
    """No key has this id."""

    code = "unknown_key"

    def __init__(self, key: str) -> None:
        super().__init__(f"no key has the id {key[:80]!r}; `livery keys ls` shows those there are")


class Conflict(TenancyError):
    """What is there already stands against it."""

    code = "conflict"


class TenantExists(Conflict):
    """Another tenant has this name."""

    code = "tenant_exists"

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a tenant {name!r} already; change it with `livery tenants set`")


class TenantInUse(Conflict):
    """Adapters lie below the tenant's name."""

    code = "tenant_in_use"


class KeyOver(Conflict):
    """The key was revoked or has expired, so nothing can take its place."""

    code = "key_over"

    def __init__(self, key: str, how: str) -> None:
        super().__init__(f"key {key} {how}, so there is nothing to rotate; make a new one with `livery keys create`")
