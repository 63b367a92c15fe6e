"""What a prompt's usage says was not computed, and whom a prompt is shared with.

The fake engine reports whole blocks of 16 tokens that an earlier prompt of the same kind began with.
"""

from __future__ import annotations

from typing import Any

import openai
import pytest

from api.live_server import BASE, LiveServer

PROMPT = list(range(100, 140))  # two blocks and a half
SYSTEM: Any = {"role": "system", "content": "You answer in few words and never guess. " * 8}


def cached(usage: Any) -> int:
    return int(usage.prompt_tokens_details.cached_tokens)


def complete(server: LiveServer, prompt: Any = PROMPT, **extra: Any) -> int:
    body = {"model": BASE, "max_tokens": 2, **extra}
    return cached(server.client().completions.create(prompt=prompt, **body).usage)


def test_the_second_prompt_that_begins_alike_says_how_much_was_there(server: LiveServer) -> None:
    prompt = [7, *PROMPT]  # the server is shared, and so is what it has seen
    assert complete(server, prompt) == 0
    assert complete(server, prompt) == 32
    assert complete(server, prompt[:32]) == 16, "a prompt's last token is always computed"
    assert complete(server, [*prompt[:20], 7, 8]) == 16
    with server.client().completions.create(
        model=BASE, prompt=prompt, max_tokens=2, stream=True, stream_options={"include_usage": True}
    ) as stream:
        assert [cached(chunk.usage) for chunk in stream if chunk.usage] == [32]


def test_a_chat_says_so_too_streamed_or_not(server: LiveServer) -> None:
    def ask(question: str, **extra: Any) -> Any:
        messages = [SYSTEM, {"role": "user", "content": question}]
        return server.client().chat.completions.create(model=BASE, messages=messages, max_tokens=2, **extra)

    assert cached(ask("And why?").usage) == 0
    assert cached(ask("How far is it?").usage) >= 48
    stream = ask("Who was it?", stream=True, stream_options={"include_usage": True})
    assert [cached(chunk.usage) >= 48 for chunk in stream if chunk.usage] == [True]


def test_a_salt_shares_with_itself_alone(server: LiveServer) -> None:
    complete(server)
    for salt in ("mine", "yours"):
        assert complete(server, extra_body={"cache_salt": salt}) == 0
        assert complete(server, extra_body={"cache_salt": salt}) == 32
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="cache_salt"):
        client.completions.create(model=BASE, prompt=PROMPT, extra_body={"cache_salt": ""})
    assert {request.tenant for request in server.engine.requests} == {"default"}


def test_several_answers_count_their_prompt_once(server: LiveServer) -> None:
    prompt = PROMPT[::-1]
    assert complete(server, prompt, n=3) == 0, "the second answer finds the first one's blocks, which this request paid"
    assert complete(server, [prompt, prompt[:20]], n=2) == 32 + 16
