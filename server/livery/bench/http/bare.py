"""A server without what keeps tenants apart, to measure what that costs: no key, room or limit, nothing counted."""

from __future__ import annotations

from livery.admission import Admission, Admitted, Asked
from livery.api.boundary import Boundary
from livery.lease import Caller
from livery.tenancy import OPERATOR, Doors, Flusher, KeyRing


class Free(Admitted):
    """What a request holds that nobody counts: its lease."""

    def __init__(self) -> None:
        self.lease = None

    def encoded(self, *_: object) -> None: ...

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


async def _start(*_: object) -> None: ...


def take_tenancy_away() -> None:
    """Put nothing in the place of all of it, for this process."""
    for owner, name, instead in (
        (Admission, "admit", _admit),
        (Admission, "count", lambda *_: None),
        (Admission, "hold_body", lambda *_: None),
        (Boundary, "_tell_rates", lambda *_: None),
        (Doors, "admit", lambda *_: OPERATOR),
        (Flusher, "start", lambda *_: None),
        (KeyRing, "start", _start),
    ):
        setattr(owner, name, instead)
