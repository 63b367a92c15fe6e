"""What all bodies of requests have in common."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

from livery.api.plain_json import check_plain
from livery.api.unsupported import Rule

MAX_UNKNOWN = 1000  # fields told of one request


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

    unsupported: ClassVar[tuple[Rule, ...]] = ()  # fields outside the schema that are known nevertheless
    handed_on: ClassVar[bool] = False  # what the schema doesn't know goes where the rest goes, as it came

    @property
    def unknown_fields(self) -> list[str]:
        """Dotted names of fields, here and in objects within, that are neither in the schema nor known to be
        unsupported; the first MAX_UNKNOWN. Null is absent.
        """
        return list(islice(_unknown(self, ""), MAX_UNKNOWN))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        schema = handler(source)
        _fail_fast(schema)
        return schema


def _unknown(body: Body, at: str) -> Iterator[str]:
    """Those of a body that stands at `at`, a dotted path with its last dot. As deep as schemas are."""
    if body.handed_on:
        return
    known = {rule.name for rule in body.unsupported}
    for name, value in (body.model_extra or {}).items():
        if value is not None and name not in known:
            yield at + name
    for name, value in body.__dict__.items():
        if isinstance(value, Body):
            yield from _unknown(value, f"{at}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Body):
            for index, inner in enumerate(value):
                yield from _unknown(inner, f"{at}{name}.{index}.")


class WholeBody(Body):
    """What stands at the top of a request. Raises InvalidParameter for text or depth that nothing could take."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        check_plain(value)
        return value
