"""A server without something, to measure what that costs: without what keeps tenants apart (no key, room or limit, no
usage), or without all that is counted for those who look on. In one process: two of the same kind differ by more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from livery.activity import Activity
from livery.admission import Admission, Admitted, Asked, Refusals
from livery.api.boundary import Boundary
from livery.lease import Caller
from livery.metrics import Metrics
from livery.tenancy import OPERATOR, Doors, Flusher, KeyRing


class Free(Admitted):
    """What a request holds that nobody counts: its lease."""

    def __init__(self) -> None:
        self.lease = None
        self.refusals = Refusals("", lambda *_: None)

    async def encoded(self, *_: object) -> None: ...

    def answered(self, *_: object) -> None: ...

    def begun(self, *_: object) -> None: ...

    def account(self) -> None: ...

    def release(self) -> None:
        if self.lease is not None:
            self.lease.release()


async def _admit(self: Admission, model: str, caller: Caller, _: Asked) -> Admitted:
    admitted = Free()
    admitted.lease = await self._find(model, caller)
    return admitted


async def _nothing(*_: object) -> None: ...


class Uncounted:
    """In the place of a request's meter and of each of its sequences': it counts nothing."""

    first_token_s = outcome = encoding = None
    sequences: tuple[()] = ()
    kind = error = ""
    started = 0.0

    def sequence(self) -> Uncounted:
        return self

    def _nothing(self, *_: object) -> None: ...

    begun = tokens = finished = pooled = close = _nothing


UNCOUNTED = Uncounted()


async def _flushed(*_: object) -> bool:
    return True


Instead = tuple[type, str, Any]  # a class, the name of its method, and what takes its place

TENANCY: Sequence[Instead] = (
    (Admission, "account", lambda *_: None),
    (Admission, "admit", _admit),
    (Admission, "count", _nothing),
    (Admission, "hold_body", lambda *_: None),
    (Boundary, "_tell_rates", lambda *_: None),
    (Doors, "admit", lambda *_: OPERATOR),
    (Flusher, "flush", _flushed),
    (KeyRing, "refresh", _nothing),
)
METRICS: Sequence[Instead] = (
    (Metrics, "begin", lambda *_: UNCOUNTED),
    (Metrics, "http", lambda *_: None),
    (Metrics, "catch_up", lambda *_: None),
    (Activity, "note", lambda *_: None),
    (Boundary, "_trace", lambda *_: None),
)


class Switch:
    """Takes something away and puts it back, while nothing is asked."""

    def __init__(self, without: Sequence[Instead]) -> None:
        self.on = True
        self._without = without
        self._usual = tuple((owner, name, getattr(owner, name)) for owner, name, _ in without)

    def turn(self) -> None:
        self.on = not self.on
        for owner, name, instead in self._usual if self.on else self._without:
            setattr(owner, name, instead)
