"""What clients of the management routes may send. Unknown fields are refused here: a misspelt one would change
what is served without a word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from livery.adding import AddOptions
from livery.api.plain_json import check_plain
from livery.refusals import InvalidParameter
from livery_adapters.profile import Profile, ProfileInvalid, parse_profile, profile_schema, read_profile

Name = Annotated[str, Field(min_length=1, max_length=256)]
Generation = Annotated[int, Field(ge=0)]
MAX_TARGETS = 16
PROFILE_SCHEMA = profile_schema()


class StrictBody(BaseModel):
    """A JSON object of known fields, each of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        check_plain(value)
        return value

    @classmethod
    def parse(cls, data: bytes, at: str | None = None) -> Self:
        """Raises what the framework raises for a body that it reads itself; `at` is the field it stands in."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            issues = [
                {**issue, "loc": ("body", *((at,) if at else ()), *issue["loc"])}
                for issue in error.errors(include_context=False)
            ]
            raise RequestValidationError(issues) from None


def profile_of(value: object) -> Profile:
    """The profile in a body, whose definition is that of profile.yaml. Raises InvalidParameter."""
    try:
        return read_profile(value)
    except ProfileInvalid as invalid:
        at = _in_profile(invalid)
        raise InvalidParameter(f"{at}: {invalid.reason}", at) from None


def profile_text(text: str) -> Profile:
    """The profile in a parameter, as YAML, which JSON is too. Raises InvalidParameter."""
    try:
        return parse_profile(text.encode(), "profile")
    except ProfileInvalid as invalid:
        raise InvalidParameter(str(invalid), _in_profile(invalid)) from None


def _in_profile(invalid: ProfileInvalid) -> str:
    return f"profile.{invalid.at}" if invalid.at else "profile"


class PutAdapterBody(StrictBody):
    """PUT /v1/adapters/{name}."""

    source: Annotated[str, Field(min_length=1, max_length=2048)]
    pinned: bool | None = None
    expected_generation: Generation | None = None
    approximate: int | None = Field(None, ge=1, le=4096)
    activate: bool = True
    profile: dict[str, Any] | None = Field(None, json_schema_extra=PROFILE_SCHEMA)

    def options(self) -> AddOptions:
        return AddOptions(
            self.pinned,
            self.expected_generation,
            self.approximate or 0,
            self.activate,
            None if self.profile is None else profile_of(self.profile),
        )


class ProfileBody(StrictBody):
    """PUT /v1/adapters/{name}/profile. {} takes the profile away."""

    profile: dict[str, Any] = Field(json_schema_extra=PROFILE_SCHEMA)
    expected_generation: Generation | None = None

    def read(self) -> Profile:
        return profile_of(self.profile)


class CheckBody(StrictBody):
    """POST /v1/adapters:check."""

    source: Annotated[str, Field(min_length=1, max_length=2048)]
    approximate: int | None = Field(None, ge=1, le=4096)


class ActivateBody(StrictBody):
    """POST /v1/adapters/{name}/activate: a number or the beginning of a digest."""

    version: Name | Annotated[int, Field(ge=1)]
    expected_generation: Generation | None = None


class GenerationOnly(StrictBody):
    """POST /v1/adapters/{name}/rollback."""

    expected_generation: Generation | None = None


class ShareBody(StrictBody):
    """POST /v1/adapters/{name}/share and /unshare: with whom."""

    tenant: Name


class AliasTargetBody(StrictBody):
    adapter: Name
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class AliasBody(StrictBody):
    """PUT /v1/aliases/{name}."""

    targets: Annotated[list[AliasTargetBody], Field(min_length=1, max_length=MAX_TARGETS)]
    sticky: Literal["user", "key", "none"] = "user"
    expected_generation: Generation | None = None
