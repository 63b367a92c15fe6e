"""Verification within a session, on real servers: what is asked again, and what becomes of what isn't."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass

import pytest
from starlette.requests import Request
from starlette.responses import Response

from livery_loadtest.drive import look_away
from livery_loadtest.kinds import Closed, Fixed
from livery_loadtest.session import MOST_SUSPECTS, Manner, Measured, find_served, run_session
from livery_loadtest.spec import Workload
from livery_loadtest.target import Target
from loadtest.known_server import CHANGING, KnownServer, serving


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


@dataclass
class Interrupting(KnownServer):
    """Answers some requests; at the next one its client gets a Ctrl-C, and no answer."""

    answered: int = 0

    async def complete(self, request: Request) -> Response:
        if len(self.seen) < self.answered:
            return await super().complete(request)
        os.kill(os.getpid(), signal.SIGINT)
        while (await request.receive())["type"] != "http.disconnect":
            continue
        return Response()


@pytest.mark.parametrize(
    ("answered", "findings"),
    [
        (6, None),
        (6 + 4, {"not looked into": 4}),
        (6 + 6 + 3, {"parted": 3, "not looked into": 3}),
    ],
    ids=["before anything was compared", "asking again", "asking others"],
)
async def test_an_interrupt_while_answers_are_compared_keeps_the_run_and_those_that_were(
    answered: int, findings: dict[str, int] | None
) -> None:
    server = Interrupting("cut", ["base", CHANGING], answered=answered)
    with serving(server):
        measured = await verified(server, 6)
    (run,) = measured.runs
    assert run.interrupted
    assert [record.error for record in run.records] == [None] * 6
    found = [Counter(one.finding for one in verification.compared) for verification in measured.verified.values()]
    assert found == ([] if findings is None else [findings])
