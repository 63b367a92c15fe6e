"""What clients of the management routes may send. Unknown fields are refused here: a misspelt one would change
what is served without a word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from livery.api.plain_json import check_plain
from livery.management import AddOptions

Name = Annotated[str, Field(min_length=1, max_length=256)]
Generation = Annotated[int, Field(ge=0)]
MAX_TARGETS = 16


class _Body(BaseModel):
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


class Profile(_Body):
    """What requests for the adapter get where they don't say otherwise."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)

    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class PutAdapterBody(_Body):
    """PUT /v1/adapters/{name}."""

    source: Annotated[str, Field(min_length=1, max_length=2048)]
    pinned: bool | None = None
    expected_generation: Generation | None = None
    approximate: int | None = Field(None, ge=1, le=4096)
    activate: bool = True
    profile: Profile | None = None

    def options(self) -> AddOptions:
        return AddOptions(
            self.pinned,
            self.expected_generation,
            self.approximate or 0,
            self.activate,
            self.profile.given() if self.profile else {},
        )


class CheckBody(_Body):
    """POST /v1/adapters:check."""

    source: Annotated[str, Field(min_length=1, max_length=2048)]
    approximate: int | None = Field(None, ge=1, le=4096)


class ActivateBody(_Body):
    """POST /v1/adapters/{name}/activate: a number or the beginning of a digest."""

    version: Name | Annotated[int, Field(ge=1)]
    expected_generation: Generation | None = None


class GenerationOnly(_Body):
    """POST /v1/adapters/{name}/rollback."""

    expected_generation: Generation | None = None


class AliasTargetBody(_Body):
    adapter: Name
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class AliasBody(_Body):
    """PUT /v1/aliases/{name}."""

    targets: Annotated[list[AliasTargetBody], Field(min_length=1, max_length=MAX_TARGETS)]
    sticky: Literal["user", "key", "none"] = "user"
    expected_generation: Generation | None = None
