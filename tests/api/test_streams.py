"""How streams end, fail, keep alive and notice that nobody listens any more."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup, saying
from livery.engine.fake import Behaviour
from livery.text import Tokenizer

CHAT = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}

WORDS = "one two three four five six"  # a token each


def raw_stream(server: LiveServer, **changes: object) -> tuple[httpx.Headers, str]:
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**CHAT, "stream": True, **changes}, timeout=30) as answer:
        return answer.headers, answer.read().decode()


def events(text: str) -> list[str]:
    return [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]


def test_a_whole_stream_on_the_wire(server: LiveServer) -> None:
    headers, text = raw_stream(server, n=2)
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-livery-adapter"] == f"{BASE}@{'fa' * 6}"
    assert headers["x-request-id"].startswith("req_")
    assert text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(data) for data in events(text)[:-1]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [{"role": "assistant", "content": ""}] * 2
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1}
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["system_fingerprint"].startswith("livery-")


@pytest.mark.parametrize("together", [2, 4, 9])
def test_text_is_the_same_however_many_tokens_come_together(serve: Serve, tokenizer: Tokenizer, together: int) -> None:
    ids = tokenizer.encode(WORDS)
    one, many = (serve(Setup(behaviour=Behaviour(script=lambda _: ids, together=count))) for count in (1, together))

    def told(server: LiveServer, **changes: Any) -> tuple[object, ...]:
        client = server.client().chat.completions
        whole = client.create(**{**CHAT, **changes})
        chunks = list(client.create(**{**CHAT, **changes}, stream=True, stream_options={"include_usage": True}))
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(texts) == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        return whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.completion_tokens

    for changes in (
        {},
        {"stop": " four"},
        {"stop": "o t"},
        {"max_tokens": 5},
        {"extra_body": {"min_tokens": 5}, "stop": " two"},
    ):
        assert told(many, **changes) == told(one, **changes)


def test_a_failure_in_the_middle_is_an_error_event_and_no_done(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(fail_after=3)))
    _, text = raw_stream(server)
    found = events(text)
    assert "[DONE]" not in text
    assert json.loads(found[-1])["error"]["code"] == "generation_failed"
    assert len(found) > 1
    with pytest.raises(openai.APIError, match="told to fail"):
        list(server.client().chat.completions.create(**CHAT, stream=True))  # type: ignore[call-overload]
    with pytest.raises(openai.APIError, match="told to fail"):
        list(server.client().completions.create(model=BASE, prompt="x", n=3, stream=True))
    assert server.engine.open_requests == 0


def test_a_failure_before_the_first_token_has_a_status(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(fail_after=0)))
    for stream in (True, False):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "stream": stream})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "generation_failed"


def test_an_engine_that_dies_ends_every_stream_with_an_error(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(die_after=2)))
    assert httpx.get(f"{server.url}/ready").status_code == 200
    _, text = raw_stream(server)
    assert json.loads(events(text)[-1])["error"]["code"] == "internal_error"
    assert "[DONE]" not in text
    assert httpx.get(f"{server.url}/ready").status_code == 503
    assert httpx.get(f"{server.url}/health").status_code == 503
    assert httpx.get(f"{server.url}/metrics").status_code == 200


def test_silence_is_filled_with_comments(serve: Serve, tokenizer: Tokenizer) -> None:
    server = serve(Setup(behaviour=saying(tokenizer, WORDS, stepped=True), keep_alive_s=0.01))
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**CHAT, "stream": True}, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": keep-alive"  # before the first token
        server.step()
        first = next(line for line in lines if line.startswith("data: "))
        assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
        assert next(line for line in lines if line.startswith(":")) == ": keep-alive"  # and between tokens
        server.step(5)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    chunks = []
    stream = server.client().chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
    server.step(6)
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_client_that_leaves_a_stream_aborts_it(serve: Serve, tokenizer: Tokenizer) -> None:
    server = serve(Setup(behaviour=saying(tokenizer, WORDS, stepped=True)))
    url = f"{server.url}/v1/chat/completions"
    server.step(2)
    with httpx.stream("POST", url, json={**CHAT, "stream": True, "n": 2}, timeout=30) as answer:
        server.wait_until(lambda engine: engine.open_requests == 2)
        assert next(answer.iter_lines()).startswith("data: ")
    server.wait_until(lambda engine: engine.open_requests == 0)
    assert sorted(server.engine.aborted) == sorted(request.request_id for request in server.engine.requests)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_first_token_aborts_it(serve: Serve, stream: bool) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True)))
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    body = json.dumps({**CHAT, "stream": stream})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    server.wait_until(lambda engine: engine.open_requests == 1)
    connection.close()
    server.wait_until(lambda engine: engine.open_requests == 0)
    assert server.engine.aborted == [server.engine.requests[0].request_id]


def test_a_server_that_must_stop_says_that_the_stream_is_cut(serve: Serve, tokenizer: Tokenizer) -> None:
    server = serve(Setup(behaviour=saying(tokenizer, WORDS, stepped=True), drain_s=0))
    url = f"{server.url}/v1/chat/completions"
    server.step()  # headers come with the first token
    with httpx.stream("POST", url, json={**CHAT, "stream": True}, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.request_stop()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_overloaded"


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_cut_before_its_first_token_is_told_to_come_back(serve: Serve, stream: bool) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), drain_s=0))
    url = f"{server.url}/v1/chat/completions"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, url, json={**CHAT, "stream": stream}, timeout=30)
        server.wait_until(lambda engine: engine.open_requests == 1)
        server.request_stop()
        answer = asked.result(30)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_overloaded"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"].startswith("req_")
    server.stop()
    assert server.engine.open_requests == 0


def test_draining_refuses_what_is_new_and_finishes_what_is_open(serve: Serve, tokenizer: Tokenizer) -> None:
    server = serve(Setup(behaviour=saying(tokenizer, WORDS, stepped=True)))
    url = f"{server.url}/v1/chat/completions"
    server.step()  # headers come with the first token
    with httpx.stream("POST", url, json={**CHAT, "stream": True}, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.service.drain()
        refused = httpx.post(url, json=CHAT)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        server.step(5)
        assert [line for line in lines if line][-1] == "data: [DONE]"


async def test_the_async_client_too(server: LiveServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        models = await client.models.list()
        assert models.data[0].id == BASE
