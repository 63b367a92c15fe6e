"""Grammars on their way to their trial: whose wait, and what is remembered of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from api.live_server import VOCAB
from livery.api.errors import describe
from livery.engine.base import Grammar
from livery.engine.fake import FakeEngine
from livery.grammar_check import MAX_WAITING, MAX_WAITING_EACH, GrammarCheck
from livery.refusals import Draining, GrammarUntried, InvalidParameter
from livery.tenancy import LimitExceeded
from livery.text import Tokenizer

MISSING = Grammar("lark", "start: missing")


async def check_of(tokenizer: Tokenizer, **settings: float) -> GrammarCheck:
    info = await FakeEngine(vocab_size=VOCAB, eos_token_ids=(2,)).start()
    return GrammarCheck(tokenizer.to_json, info, **settings)


async def test_one_tenants_grammars_fill_nobody_elses_queue(tokenizer: Tokenizer) -> None:
    check = await check_of(tokenizer)
    try:
        new = [Grammar("regex", f"a{{{index + 1}}}") for index in range(MAX_WAITING_EACH + 1)]
        theirs, same = Grammar("regex", "b"), new[0]
        *taken, refused, shared, other = await asyncio.gather(
            *(check.check(grammar, "guided_regex", "first") for grammar in new),
            check.check(same, "guided_regex", "first"),  # waits already, so it takes no more room
            check.check(theirs, "guided_regex", "second"),
            return_exceptions=True,
        )
        assert [*taken, shared, other] == [*new[:-1], same, theirs]
        assert isinstance(refused, LimitExceeded) and "4 new schemas or grammars of tenant 'first'" in str(refused)
        answer = describe(refused)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.body["error"]["code"] == "rate_limit_exceeded"
        assert await check.check(new[-1], "guided_regex", "first") == new[-1]  # there is room again
    finally:
        await check.stop()


async def test_a_queue_that_all_tenants_fill_is_the_servers_limit(tokenizer: Tokenizer) -> None:
    check = await check_of(tokenizer)
    new = [Grammar("regex", f"c{{{index + 1}}}") for index in range(MAX_WAITING)]
    waiting = [asyncio.ensure_future(check.check(one, "guided_regex", f"t{at}")) for at, one in enumerate(new)]
    try:
        await asyncio.sleep(0)  # each begins before this goes on
        with pytest.raises(GrammarUntried, match=f"{MAX_WAITING} others wait") as refused:
            await check.check(MISSING, "guided_grammar", "one more")
        answer = describe(refused.value)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.body["error"]["code"] == "grammar_untried"
    finally:
        await check.stop()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_schemas_of_profiles_count_together_beside_tenants(tokenizer: Tokenizer) -> None:
    check = await check_of(tokenizer)
    try:
        schemas = [f'{{"type": "string", "maxLength": {index}}}' for index in range(MAX_WAITING_EACH + 1)]
        *taken, refused, other = await asyncio.gather(
            *(check.check_schema(schema) for schema in schemas),
            check.check(Grammar("regex", "d"), "guided_regex", "default"),
            return_exceptions=True,
        )
        assert taken == [None] * MAX_WAITING_EACH and other == Grammar("regex", "d")
        assert isinstance(refused, GrammarUntried), "an operator's 429 would be told to whom no limit is set"
    finally:
        await check.stop()


async def test_what_the_machine_had_no_time_for_is_no_verdict(tokenizer: Tokenizer) -> None:
    check = await check_of(tokenizer, wall_s=0.0)
    try:
        for _ in range(2):
            with pytest.raises(GrammarUntried) as refused:
                await check.check(MISSING, "guided_grammar", "anyone")
            assert describe(refused.value).headers["retry-after"] == "5"
        assert not check._verdicts
    finally:
        await check.stop()


async def test_a_verdict_is_kept(tokenizer: Tokenizer) -> None:
    check = await check_of(tokenizer)
    try:
        for _ in range(2):
            with pytest.raises(InvalidParameter, match="missing"):
                await check.check(MISSING, "guided_grammar", "anyone")
        assert list(check._verdicts) == [MISSING]
    finally:
        await check.stop()


def processes() -> set[int]:
    """Children of this one that try grammars."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"livery.grammar_process" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("started", [True, False])
async def test_no_process_outlives_the_stop_whoever_waits(tokenizer: Tokenizer, *, started: bool) -> None:
    check = await check_of(tokenizer)
    before = processes()
    if started:
        await check.check(Grammar("regex", "a"), "guided_regex", "anyone")
        assert processes() - before
    waiting = [
        asyncio.create_task(check.check(Grammar("regex", f"b{{{index + 1}}}"), "guided_regex", "anyone"))
        for index in range(MAX_WAITING_EACH)
    ]
    while len(check._trials) < len(waiting):
        await asyncio.sleep(0)
    await check.stop()
    said = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in said] == [Draining] * len(waiting)
    with pytest.raises(Draining):
        await check.check(Grammar("regex", "c"), "guided_regex", "anyone")
    assert processes() == before
