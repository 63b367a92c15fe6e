"""Tokenizers that adapters' added tokens make of the base's: made once for all who ask, and kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from livery.adapter_text import KEPT_AT_LEAST, AdapterText
from livery.foreign_templates import TemplateWorkers
from livery.models import resolve_model
from livery.text import Tokenizer
from livery_adapters.profile import AddedToken, Profile
from livery_adapters.refusal import AdapterRefused

FIRST = 49152  # the id after the base's last
SETS = 20


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    return Tokenizer.from_directory(resolve_model("smollm2-135m-instruct").path)


@pytest.fixture(scope="module")
def workers() -> Iterator[TemplateWorkers]:
    workers = TemplateWorkers(1)
    yield workers
    workers.close()


@pytest.fixture
def made(base: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first added token of each tokenizer that is made, as it is."""
    made: list[str] = []
    make = Tokenizer.with_tokens

    def counted(self: Tokenizer, added: Sequence[AddedToken]) -> Tokenizer:
        made.append(added[0].content)
        return make(self, added)

    monkeypatch.setattr(Tokenizer, "with_tokens", counted)
    return made


def adding(content: str, token_id: int = FIRST) -> Profile:
    return Profile(added_tokens=(AddedToken(token_id, content),))


async def test_requests_that_wait_for_the_same_tokens_make_one_tokenizer(
    base: Tokenizer, workers: TemplateWorkers, made: list[str]
) -> None:
    text = AdapterText(base, FIRST + 8, workers)
    left = asyncio.create_task(text.tokenizer(adding("<call>")))
    await asyncio.sleep(0)  # it has begun
    asked = [asyncio.create_task(text.tokenizer(adding("<call>"))) for _ in range(20)]
    left.cancel()
    found = await asyncio.gather(*asked)
    assert made == ["<call>"]
    assert {id(tokenizer) for tokenizer in found} == {id(found[0])}
    assert found[0].encode("<call>") == [FIRST]
    assert left.cancelled()


async def test_many_sets_in_turn_are_made_once(base: Tokenizer, workers: TemplateWorkers, made: list[str]) -> None:
    text = AdapterText(base, FIRST + 8, workers)
    for _ in range(2):
        for number in range(SETS):
            await text.tokenizer(adding(f"<{number}>"))
        assert len(made) == SETS


async def test_beyond_the_bound_the_longest_unused_goes(
    base: Tokenizer, workers: TemplateWorkers, made: list[str]
) -> None:
    text = AdapterText(base, FIRST + 8, workers, kept_bytes=0)
    for number in (*range(KEPT_AT_LEAST), 0, KEPT_AT_LEAST, 0, 1):
        await text.tokenizer(adding(f"<{number}>"))
    assert made == [*(f"<{number}>" for number in range(KEPT_AT_LEAST + 1)), "<1>"]


async def test_they_are_made_whatever_the_default_threads_do(base: Tokenizer, workers: TemplateWorkers) -> None:
    gate, begun = threading.Event(), threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    text = AdapterText(base, FIRST + 8, workers)

    def block() -> None:
        begun.set()
        gate.wait(60)

    blocked = asyncio.create_task(asyncio.to_thread(block))
    try:
        while not begun.is_set():
            await asyncio.sleep(0)
        assert (await text.tokenizer(adding("<call>"))).encode("<call>") == [FIRST]
        assert not blocked.done()
    finally:
        gate.set()
        await blocked


async def test_tokens_that_do_not_fit_are_told_to_all_who_wait(
    base: Tokenizer, workers: TemplateWorkers, made: list[str]
) -> None:
    text = AdapterText(base, FIRST + 8, workers)
    asked = [text.tokenizer(adding("<far>", FIRST + 5)) for _ in range(3)]
    for told in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(told, AdapterRefused)
        assert (told.code, "it would have 49152" in told.message) == ("unusable_tokenizer", True)
    assert made == ["<far>"]
    assert (await text.tokenizer(adding("<far>"))).encode("<far>") == [FIRST]
