"""Verification within a session, on real servers: what is asked again, and what becomes of what isn't."""

from __future__ import annotations

from collections import Counter

from livery_loadtest.drive import look_away
from livery_loadtest.kinds import Closed, Fixed
from livery_loadtest.session import MOST_SUSPECTS, Manner, Measured, find_served, run_session
from livery_loadtest.spec import Workload
from livery_loadtest.target import Target
from loadtest.known_server import CHANGING, KnownServer


async def verified(server: KnownServer, requests: int, **fields: object) -> Measured:
    """One run on one adapter of a server, all of whose answers are asked for again."""
    subject = await find_served(Target(server.name, server.url), [CHANGING])
    asked = {"arrivals": Closed(streams=4), "output": Fixed(tokens=2), "warm_up": 0, **fields}
    workload = Workload(name="some", requests=requests, **asked)  # type: ignore[arg-type]
    (measured,) = await run_session([workload], [subject], Manner(verify=requests), lambda *_: look_away)
    return measured


async def test_answers_that_differ_are_looked_into_up_to_a_number_and_the_others_are_said(faulty: KnownServer) -> None:
    more = 3
    measured = await verified(faulty, MOST_SUSPECTS + more)
    (verification,) = measured.verified.values()
    assert Counter(one.finding for one in verification.compared) == {"parted": MOST_SUSPECTS, "not looked into": more}
    assert verification.not_looked_into == more
    asked = Counter(seen["model"] for seen in faulty.seen)
    assert asked == {CHANGING: 2 * (MOST_SUSPECTS + more), "base": MOST_SUSPECTS}
