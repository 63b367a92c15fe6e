"""Errors that cross the border between two processes: their kind, their words, and what they carry beside these."""

from __future__ import annotations

import msgspec

from livery.engine.base import (
    AdapterLoadFailed,
    EngineDead,
    EngineError,
    EngineRestarting,
    ModelRefused,
    RequestRefused,
)
from livery.refusals import NotReady, Overloaded
from livery.tenancy import LimitExceeded, OverShare

KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(AdapterLoadFailed, EngineDead, EngineError, EngineRestarting, ModelRefused, RequestRefused),
        *(LimitExceeded, NotReady, Overloaded, OverShare),
    )
}
CROSSING = tuple(kind for kind in KINDS.values() if kind is not EngineError)  # which stands for what nobody expected


class Failure(msgspec.Struct, frozen=True):
    """One of CROSSING, or an EngineError, as it is told."""

    kind: str
    words: str
    carried: dict[str, int | str]

    @classmethod
    def of(cls, error: Exception) -> Failure:
        carried = {name: value for name, value in vars(error).items() if isinstance(value, int | str)}
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS)
        return cls(kind, str(error), carried)

    def as_error(self) -> Exception:
        """The same again: its words were made where it was raised, so its own way of making them is passed over."""
        kind = KINDS[self.kind]
        error = kind.__new__(kind, self.words)
        vars(error).update(self.carried)
        return error
