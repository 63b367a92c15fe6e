"""The bodies that an ingress reads before anybody knows who sends them, and the room that all of them have.

    body = Body(bodies)
    try: beginning = await body.read(request.stream())
    finally: body.leave()                   # once a replica has taken it over

What is announced takes no room: strangers would fill it with bodies that never come. Knows no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from livery.api.boundary import BODY_TIMEOUT_S, MAX_BODY, most_bytes
from livery.api.errors import BodyTooSlow
from livery.refusals import Overloaded

MOST_HELD = 256 << 20  # bytes, as in a server


@dataclass(slots=True)
class Bodies:
    """Bytes of all bodies on an ingress, of those that are read and of those that have been and wait."""

    held: int = 0


@dataclass(slots=True)
class Body:
    """One of them, how many bytes it may have, and how many of it are here."""

    bodies: Bodies
    most: int = MAX_BODY
    size: int = 0

    @classmethod
    def to(cls, bodies: Bodies, path: str) -> Body:
        """One that is sent to this path."""
        return cls(bodies, most_bytes(path))

    def check(self, more: int) -> None:
        """Raises Overloaded where there is no room for so many bytes more."""
        if self.bodies.held + min(more, self.most) > MOST_HELD:
            raise Overloaded(MOST_HELD >> 20, "MiB of request bodies", 1)

    async def read(self, rest: AsyncIterator[bytes]) -> bytes:
        """A body up to a byte more than the API takes, which has words for what is too long.

        Raises BodyTooSlow, Overloaded, and what `rest` does when the client leaves.
        """
        found = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for piece in rest:
                    self.check(len(piece))
                    self.bodies.held += len(piece)
                    self.size += len(piece)
                    found += piece
                    if len(found) > self.most:
                        break
        except TimeoutError:
            raise BodyTooSlow(f"The request body didn't arrive within {BODY_TIMEOUT_S:.0f} seconds.") from None
        return bytes(found[: self.most + 1])

    def leave(self) -> None:
        """Give its room back."""
        self.bodies.held -= self.size
        self.size = 0
