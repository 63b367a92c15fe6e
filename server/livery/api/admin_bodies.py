"""What clients of the admin API may send, and what it answers. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from livery.api.adapter_bodies import StrictBody
from livery.tenancy import EVERYTHING, MAX_GRACE_S

Word = Annotated[str, Field(min_length=1, max_length=256)]
RoleName = Literal["user", "owner", "admin"]
LimitsByName = Annotated[
    dict[str, Annotated[int, Field(ge=0)] | None],
    Field(max_length=32, description="Limits by name, as in requests_per_minute; null takes one away"),
]
Expiry = Annotated[str, Field(min_length=1, max_length=64, description="A span such as 30d, or a time in ISO 8601")]
UnixTime = Annotated[float, Field(description="Unix time in seconds")]


class CreateTenantBody(StrictBody):
    """POST /admin/v1/tenants."""

    name: Word
    weight: float = 1.0
    limits: LimitsByName = Field(default_factory=dict)


class UpdateTenantBody(StrictBody):
    """PATCH /admin/v1/tenants/{name}: what is left out stays."""

    weight: float | None = None
    limits: LimitsByName = Field(default_factory=dict)
    disabled: bool | None = None


class CreateKeyBody(StrictBody):
    """POST /admin/v1/keys. A tenant that isn't there yet is made as well."""

    tenant: Word
    role: RoleName = "user"
    allow: Annotated[list[Word], Field(max_length=64)] = Field(default_factory=lambda: list(EVERYTHING))
    limits: LimitsByName = Field(default_factory=dict)
    label: Annotated[str, Field(max_length=256)] = ""
    expires: Expiry | None = None


class RotateKeyBody(StrictBody):
    """POST /admin/v1/keys/{id}/rotate."""

    grace_s: Annotated[float, Field(ge=0, le=MAX_GRACE_S)] = 0.0


class TenantView(BaseModel):
    """A tenant. `weight` is its share beside others who are waiting as well."""

    name: str
    weight: float
    limits: dict[str, int]
    created: UnixTime
    disabled: bool


class TenantList(BaseModel):
    """One page of tenants by name; `next_after` is where the next one starts."""

    data: list[TenantView]
    has_more: bool
    next_after: str | None


class DeletedTenant(BaseModel):
    """A tenant that is no more; its keys and shares went with it."""

    name: str
    deleted: Literal[True]


class KeyView(BaseModel):
    """What is kept of a key."""

    id: str
    tenant: str
    role: RoleName
    allow: list[str]
    limits: dict[str, int]
    label: str
    created: UnixTime
    expires: UnixTime | None
    revoked: UnixTime | None
    state: Literal["valid", "expired", "revoked"]


class NewKey(KeyView):
    """A key, which is shown only here."""

    key: str
    tenant_created: bool


class RotatedKey(KeyView):
    """A key in place of another one, which ends in `grace_s` seconds. It is shown only here."""

    key: str
    replaces: str
    grace_s: float


class KeyList(BaseModel):
    """One page of keys in the order in which they were made; `next_after` is where the next one starts."""

    data: list[KeyView]
    has_more: bool
    next_after: str | None
