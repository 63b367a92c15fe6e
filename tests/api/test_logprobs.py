"""Log-probabilities on their way to the client: each token's once, beside the text that it begins."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pytest
from openai.types.chat import ChatCompletionTokenLogprob
from orjson import Fragment

from api.live_server import BASE, LiveServer, Serve, Setup
from livery.answer_text import TokenEntry
from livery.api.logprobs_shape import prompt_score, text_token
from livery.api.openai import TOLD_AT_ONCE
from livery.api.shapes import Answer, written
from livery.engine.fake import Behaviour, logprobs_of
from livery.sampling import MOST_ANSWERED
from livery.text import Tokenizer

LONGEST = 4096
HELLO: Any = [{"role": "user", "content": "Hello"}]
SPLIT = "naïve 👩‍👩‍👧 日本語 ok"  # characters of several tokens


def saying(serve: Serve, tokenizer: Tokenizer, text: str, **behaviour: Any) -> tuple[LiveServer, list[int]]:
    ids = tokenizer.encode(text)
    return serve(Setup(behaviour=Behaviour(script=lambda _: ids, **behaviour))), ids


def as_told(entries: list[ChatCompletionTokenLogprob]) -> list[tuple[bytes, float]]:
    return [(bytes(entry.bytes or []), entry.logprob) for entry in entries]


@pytest.fixture(scope="module")
def long(module_serve: Serve) -> LiveServer:
    """A server of a long context, whose answers are short: they end with token 7."""
    return module_serve(Setup(behaviour=Behaviour(script=lambda _: [7]), max_model_len=LONGEST))


@pytest.mark.parametrize("together", [1, 3])
def test_a_chat_tells_every_token_once_whole_and_streamed(serve: Serve, tokenizer: Tokenizer, together: int) -> None:
    server, ids = saying(serve, tokenizer, SPLIT, together=together)
    client = server.client().chat.completions
    whole = client.create(model=BASE, messages=HELLO, logprobs=True, top_logprobs=2).choices[0]
    assert whole.logprobs is not None and whole.logprobs.content is not None
    told = whole.logprobs.content
    assert as_told(told) == [(tokenizer.token_bytes(token), logprobs_of(token, 0).logprob) for token in ids]
    assert b"".join(raw for raw, _ in as_told(told)).decode() == whole.message.content == SPLIT
    for token, entry in zip(ids, told, strict=True):
        expected = [(tokenizer.token_bytes(other), value) for other, value in logprobs_of(token, 2).top]
        if token % 5 == 0:  # not among the likeliest
            expected.append((tokenizer.token_bytes(token), entry.logprob))
        assert [(bytes(top.bytes or []), top.logprob) for top in entry.top_logprobs] == expected
    streamed: list[ChatCompletionTokenLogprob] = []
    text = ""
    for chunk in client.create(model=BASE, messages=HELLO, logprobs=True, top_logprobs=2, stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        if choice.logprobs:
            streamed += choice.logprobs.content or []
            begun = b"".join(bytes(entry.bytes or []) for entry in streamed)
            assert begun.startswith(text.encode()), "text comes with the tokens that it is made of"
    assert streamed == told and text == SPLIT
    none = client.create(model=BASE, messages=HELLO).choices[0]
    assert none.logprobs is None


def test_more_scores_than_an_answer_can_hold_are_refused(serve: Serve, tokenizer: Tokenizer) -> None:
    server, _ = saying(serve, tokenizer, "Hi")
    body = {"model": BASE, "prompt": [[7] * 100] * 32, "prompt_logprobs": 20, "n": 8, "max_tokens": 1}
    refused = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], refused.json()["error"]["message"][:6]) == ("prompt_logprobs", "537600")


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"prompt": [[7]] * 32, "n": 8, "logprobs": 20, "max_tokens": 98}, "logprobs", 256 * 98 * 21),
        ({"prompt": [7], "best_of": 8, "logprobs": 20, "max_tokens": 3121}, "logprobs", 8 * 3121 * 21),
        ({"prompt": [[7]] * 32, "best_of": 8, "max_tokens": 2049}, "best_of", 256 * 2049),
    ],
)
def test_more_of_several_answers_than_can_be_told_is_refused(
    long: LiveServer, fields: dict[str, Any], param: str, told: int
) -> None:
    assert told > MOST_ANSWERED
    refused = httpx.post(f"{long.url}/v1/completions", json={"model": BASE, **fields}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert f" {told}, " in refused.json()["error"]["message"]
    assert f" {MOST_ANSWERED}:" in refused.json()["error"]["message"]
    assert long.engine.open_requests == 0
    body = {"model": BASE, **fields, "max_tokens": fields["max_tokens"] - 1}
    assert httpx.post(f"{long.url}/v1/completions", json={**body, "stop_token_ids": [7]}, timeout=60).status_code == 200


def test_answers_whose_length_nobody_said_end_where_no_more_can_be_told(long: LiveServer) -> None:
    """A single one never does, and nothing is refused."""
    asked: dict[str, Any] = {"model": BASE, "messages": HELLO, "stop_token_ids": [7]}
    found = []
    for fields in ({"n": 8, "top_logprobs": 20}, {"n": 8}, {"n": 1, "top_logprobs": 20}, {"n": 8, "logprobs": False}):
        body = {**asked, "logprobs": True, **fields}
        assert httpx.post(f"{long.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        request = long.engine.requests[-1]
        room = LONGEST - len(request.prompt_token_ids)
        found.append(request.sampling.max_tokens if request.sampling.max_tokens < room else room)
    assert found == [MOST_ANSWERED // (8 * 21), room, room, room]


@pytest.mark.parametrize("fields", [{"logprobs": 20}, {"echo": True, "logprobs": 20}, {"prompt_logprobs": 20}])
def test_many_that_come_together_are_told_in_turns_with_others(
    serve: Serve, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(Setup(behaviour=Behaviour(together=300), max_model_len=1024))
    turns, told = itertools.count(), list[tuple[int, int]]()
    now = 0

    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        def note(entry: TokenEntry, *arguments: Any) -> Any:
            told.append((now, 1 + len(entry.top)))
            return real(entry, *arguments)

        return note

    monkeypatch.setattr("livery.api.text_shape.text_token", noted(text_token))
    monkeypatch.setattr("livery.api.shapes.prompt_score", noted(prompt_score))

    async def others() -> None:
        nonlocal now
        while True:
            await asyncio.sleep(0)
            now = next(turns)

    async def begin() -> asyncio.Task[None]:
        return asyncio.create_task(others())

    task = server.call(begin())
    body = {"model": BASE, "prompt": [7] * 300, "max_tokens": 300, "ignore_eos": True, **fields}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    server._loop.call_soon_threadsafe(task.cancel)
    assert answer.status_code == 200, answer.text
    assert len(told) >= 299
    for _, together in itertools.groupby(told, key=lambda one: one[0]):
        assert sum(count for _, count in together) < TOLD_AT_ONCE + 22


def test_long_choices_are_written_one_at_a_time() -> None:
    turn, begun = 0, list[int]()

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def choice(index: int, _: Answer) -> dict[str, int]:
        begun.append(turn)
        return {"index": index}

    async def run() -> list[Fragment]:
        ticking = asyncio.create_task(others())
        await asyncio.sleep(0)
        found = await written(choice, [Answer(lambda _: None)] * 3)
        ticking.cancel()
        return found

    assert orjson.dumps(asyncio.run(run())) == b'[{"index":0},{"index":1},{"index":2}]'
    assert begun == [1, 2, 3]
