"""Every server's greedy answers beside the reference's: adapters by their names, failures told, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from livery_loadtest.commands.peers import values_line
from livery_loadtest.drive import look_away
from livery_loadtest.peers.values import answers, compare
from livery_loadtest.record import Record
from livery_loadtest.session import find_served
from livery_loadtest.target import Target
from livery_loadtest.verify import Finding, Verification
from loadtest.known_server import KnownServer, serving


def said(*models: str, known: Sequence[str] = ()) -> list[Record]:
    """The answers of a server that lists these, and answers only those that are `known`, if any are."""
    server = KnownServer("known", list(models))

    async def ask() -> list[Record]:
        subject = await find_served(Target("known", server.url))
        if known:
            server.models = list(known)
        return await answers(subject, look_away)

    with serving(server):
        return asyncio.run(ask())


def findings(one: Verification) -> dict[str, Finding]:
    return {each.model: each.finding for each in one.compared}


def test_adapters_are_paired_by_name_in_whatever_order_a_server_lists_them() -> None:
    reference = said("base", "red", "green", "blue")
    found = compare("reference", said("base", "blue", "red", "green"), reference)
    assert findings(found) == dict.fromkeys(("base", "blue", "red", "green"), Finding.SAME)
    assert not found.wrong and found.models == 4


def test_what_one_of_them_lacks_is_named_and_nothing_else_takes_its_place() -> None:
    reference, own = said("base", "red", "green"), said("base", "blue", "green")
    found = compare("reference", own, reference)
    assert findings(found) == {"base": Finding.SAME, "green": Finding.SAME}
    line = values_line("own", found, own, reference)
    assert line.endswith("; not compared, as only one of both lists them: blue, red")
    base = said("base")
    assert values_line("own", compare("reference", base, reference), base, reference).endswith("are another model's")


def test_a_server_that_fails_every_request_has_no_answer_that_parts_midway() -> None:
    reference = said("base", "red")
    found = compare("reference", said("base", "red", known=["none"]), reference)
    assert set(findings(found).values()) == {Finding.FAILED} and len(found.failed) == 2
    line = values_line("own", found, [], [])
    assert "0 part from it midway" in line and "2 failed (of base: http 404: model base is not served)" in line
    mute = compare("reference", reference, said("base", "red", known=["base"]))
    assert findings(mute) == {"base": Finding.SAME, "red": Finding.UNANSWERED}
    assert "1 have nothing to be compared with, as reference failed" in values_line("own", mute, [], [])
