"""What all bodies of requests have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator

from livery.api.plain_json import check_plain


class Body(BaseModel):
    """An object somewhere in a request."""

    # Extra fields are kept to be looked at by `unsupported`. Strict: "0.5" and true are no numbers.
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class WholeBody(Body):
    """What stands at the top of a request. Raises InvalidParameter for text or depth that nothing could take."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        check_plain(value)
        return value
