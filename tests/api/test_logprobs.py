"""Log-probabilities on their way to the client: each token's once, beside the text that it begins."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletionTokenLogprob

from api.live_server import BASE, LiveServer, Serve, Setup
from livery.engine.fake import Behaviour, logprobs_of
from livery.text import Tokenizer

HELLO: Any = [{"role": "user", "content": "Hello"}]
SPLIT = "naïve 👩‍👩‍👧 日本語 ok"  # characters of several tokens


def saying(serve: Serve, tokenizer: Tokenizer, text: str, **behaviour: Any) -> tuple[LiveServer, list[int]]:
    ids = tokenizer.encode(text)
    return serve(Setup(behaviour=Behaviour(script=lambda _: ids, **behaviour))), ids


def as_told(entries: list[ChatCompletionTokenLogprob]) -> list[tuple[bytes, float]]:
    return [(bytes(entry.bytes or []), entry.logprob) for entry in entries]


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
