"""What all bodies of requests have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

from livery.api.plain_json import check_plain


def _fail_fast(schema: object) -> None:
    """Refuse a list at its first wrong item: a description of each would take longer than all else."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for inner in schema.values():
            _fail_fast(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _fail_fast(inner)


class Body(BaseModel):
    """An object somewhere in a request."""

    # Extra fields are kept to be looked at by `unsupported`. Strict: "0.5" and true are no numbers.
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        schema = handler(source)
        _fail_fast(schema)
        return schema


class WholeBody(Body):
    """What stands at the top of a request. Raises InvalidParameter for text or depth that nothing could take."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        check_plain(value)
        return value
