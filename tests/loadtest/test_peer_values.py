"""Every server's greedy answers beside the reference's: adapters by their names, failures told, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from livery_loadtest.commands.peers import values_line
from livery_loadtest.drive import look_away
from livery_loadtest.peers.values import PROMPTS, answers, compare
from livery_loadtest.record import Record
from livery_loadtest.script import Planned
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
    assert set(findings(found).values()) == {Finding.FAILED} and len(found.failed) == 2 * len(PROMPTS)
    line = values_line("own", found, [], [])
    assert "0 part from it midway" in line and "6 failed (of base: http 404: model base is not served)" in line
    mute = compare("reference", reference, said("base", "red", known=["base"]))
    assert findings(mute) == {"base": Finding.SAME, "red": Finding.UNANSWERED}
    assert "3 have nothing to be compared with, as reference failed" in values_line("own", mute, [], [])


def written(**texts: Sequence[str]) -> list[Record]:
    """What each model said to every prompt, the base first."""
    said = [(model, text) for model, each in texts.items() for text in each]
    return [Record(Planned(index, None, model, "", 32), 0.0, text=text) for index, (model, text) in enumerate(said)]


RIGHT = written(
    base=("a good night's rest.", "lived by the sea", "they fail at night"),
    red=("a good night's sleep, and a long day", "lived in a red house", "they are hard to test"),
)


def test_a_server_that_rounds_may_go_on_like_another_model_once_and_not_to_most_prompts() -> None:
    once = written(base=("a good night's sleep, and so on", "lived by the sea", "they fail at noon"))
    found = compare("reference", once, RIGHT)
    assert [one.finding for one in found.compared] == [Finding.PARTED, Finding.SAME, Finding.PARTED]
    assert {one.as_of for one in found.compared} == {"base"}
    mostly = written(base=("a good night's sleep, and so on", "lived in a red hat", "they fail at noon"))
    found = compare("reference", mostly, RIGHT)
    assert [one.finding for one in found.compared] == [Finding.WRONG_ADAPTER, Finding.WRONG_ADAPTER, Finding.PARTED]
    assert {one.as_of for one in found.wrong} == {"red"}


def test_one_answer_that_is_another_models_word_for_word_is_no_chance() -> None:
    once = written(base=("a good night's rest.", "lived by the sea", "they are hard to test"))
    (wrong,) = compare("reference", once, RIGHT).wrong
    assert (wrong.model, wrong.as_of) == ("base", "red")
