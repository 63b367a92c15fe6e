"""The room that bodies have on an ingress: taken by what has come, given back, and refused when it is full."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from livery.api.boundary import MAX_BODY, most_bytes
from livery.refusals import Overloaded
from livery.scale.ray_bodies import MOST_HELD, Bodies, Body


async def pieces(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


async def test_a_body_takes_the_room_of_what_has_come_of_it_until_it_leaves() -> None:
    bodies = Bodies()
    one, two = Body(bodies), Body(bodies)
    one.check(MAX_BODY)
    assert bodies.held == 0, "announcing takes none"
    assert await one.read(pieces(3, 4)) == b"x" * 7
    assert await two.read(pieces(5)) == b"x" * 5
    assert bodies.held == 12
    one.leave()
    one.leave()
    assert bodies.held == 5


async def test_of_a_body_that_is_too_long_a_byte_more_is_read_than_the_api_takes() -> None:
    bodies = Bodies()
    assert len(await Body(bodies).read(pieces(MAX_BODY, 3, 1 << 30))) == MAX_BODY + 1
    most = most_bytes("/v1/embeddings")
    assert most > MAX_BODY
    assert len(await Body.to(bodies, "/v1/embeddings").read(pieces(most, 3, 1 << 30))) == most + 1


async def test_a_body_is_refused_where_it_does_not_fit_also_in_its_middle() -> None:
    bodies = Bodies(MOST_HELD - 10)
    with pytest.raises(Overloaded, match="256 MiB of request bodies"):
        Body(bodies).check(11)
    body = Body(bodies)
    body.check(10)
    with pytest.raises(Overloaded):
        await body.read(pieces(6, 5))
    assert bodies.held == MOST_HELD - 4, "what has come is there until it leaves"
    body.leave()
    assert bodies.held == MOST_HELD - 10
