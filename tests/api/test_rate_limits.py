"""Limits per key and tenant as clients see them: kinds of errors, headers, waits that are long enough."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup
from livery.engine.fake import Behaviour

RATES = ("limit", "remaining", "reset")


def client(server: LiveServer, key: str, retries: int = 0) -> openai.OpenAI:
    return server.client(key, retries)


def ask(server: LiveServer, key: str, **fields: Any) -> httpx.Response:
    body = {"model": BASE, "prompt": [3, 4], "max_tokens": 2, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=bearer(key), timeout=30)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def told(answer: httpx.Response, kind: str) -> dict[str, str]:
    return {name: answer.headers.get(f"x-ratelimit-{name}-{kind}", "") for name in RATES}


def test_over_ones_own_rate_is_429_with_a_wait_and_what_is_left(server: LiveServer) -> None:
    key = server.make_key("acme", limits={"requests_per_minute": 2})
    first = ask(server, key)
    assert first.status_code == 200
    assert told(first, "requests")["limit"] == "2" and told(first, "requests")["remaining"] == "1"
    assert told(first, "tokens") == dict.fromkeys(RATES, "")
    ask(server, key)
    with pytest.raises(openai.RateLimitError) as refused:
        client(server, key).completions.create(model=BASE, prompt=[3, 4])
    error = refused.value
    assert (error.status_code, error.code, error.type) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert "may send 2 requests a minute (requests_per_minute)" in error.message
    assert 1 <= int(error.response.headers["retry-after"]) <= 30
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert float(error.response.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    other = server.make_key("acme")
    assert ask(server, other).status_code == 200, "it was the key's limit, not the tenant's"


def test_a_client_that_waits_as_told_gets_through(server: LiveServer) -> None:
    key = server.make_key("patient", limits={"requests_per_minute": 120})
    while ask(server, key).status_code == 200:
        pass
    assert client(server, key, retries=5).completions.create(model=BASE, prompt=[3, 4]).choices


def test_a_tenants_limit_is_its_keys_together_and_changes_at_once(server: LiveServer) -> None:
    one, other = server.make_key("shared"), server.make_key("shared")
    server.tenants.update_tenant("shared", limits={"requests_per_minute": 2})
    server.call(server.keys.refresh())
    assert [ask(server, key).status_code for key in (one, other, one)] == [200, 200, 429]
    server.tenants.update_tenant("shared", limits={"requests_per_minute": 100})
    server.call(server.keys.refresh())
    assert ask(server, one).status_code == 200


def test_tokens_are_reserved_and_what_was_not_used_comes_back(server: LiveServer) -> None:
    key = server.make_key("tokens", limits={"tokens_per_minute": 100})
    for _ in range(3):
        answer = ask(server, key, max_tokens=80, stop_token_ids=[8])  # two tokens are made of the 80
        assert answer.json()["usage"]["total_tokens"] == 4
    assert told(answer, "tokens")["limit"] == "100"
    refused = ask(server, key, max_tokens=98)
    assert refused.status_code == 429
    assert "may use 100 tokens a minute (tokens_per_minute)" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 12


def test_a_prompts_tokens_stay_spent_when_its_request_is_over(server: LiveServer) -> None:
    key = server.make_key("long-prompts", limits={"tokens_per_minute": 100})
    answer = ask(server, key, prompt=[3] * 80, max_tokens=2)
    assert answer.json()["usage"]["total_tokens"] == 82
    assert ask(server, key, max_tokens=60).status_code == 429


def test_chats_whose_length_nobody_named_do_not_shut_their_tenant_out(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), keep_alive_s=0.05))
    key = server.make_key("chatting", limits={"tokens_per_minute": 200})  # below the context of 256
    streams = []
    for already in (0, 1):
        hi: list[Any] = [{"role": "user", "content": "hi"}]
        streams.append(client(server, key).chat.completions.create(model=BASE, messages=hi, stream=True))
        server.wait_until(lambda engine, already=already: engine.open_requests == already + 1)
    asked = server.engine.requests[-1]
    assert len(asked.prompt_token_ids) + asked.sampling.max_tokens == 256, "either may have all that the context leaves"
    refused = ask(server, key, max_tokens=190)
    assert refused.status_code == 429 and refused.headers["retry-after"] in ("1", "2"), refused.text
    assert "set aside for requests under way" in refused.json()["error"]["message"]
    assert "send a smaller max_tokens" in refused.json()["error"]["message"]
    server.step(600)
    for stream in streams:
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
    server.wait_until(lambda _: not server.service.admission._open)
    owing = ask(server, key)
    assert owing.status_code == 429 and owing.headers["retry-after"] == "60", "the longest that OpenAI's clients honour"
    wait = int(owing.json()["error"]["message"].partition("retry in ")[2].partition(" s")[0])
    assert 80 < wait <= 95, "512 were used of 200 a minute, and 4 more have to fit"
    assert told(owing, "tokens")["remaining"] == "0"


def test_out_of_tokens_all_that_uses_none_goes_on(server: LiveServer) -> None:
    key = server.make_key("spent", role="owner", limits={"tokens_per_minute": 50})
    assert ask(server, key, prompt=[3] * 100).status_code == 200  # more than a minute's, let in alone
    refused = ask(server, key)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 50, refused.text
    for path in LOOKING:
        assert httpx.get(f"{server.url}{path}", headers=bearer(key)).status_code in (200, 404), path
    assert httpx.delete(f"{server.url}/v1/adapters/x", headers=bearer(key)).status_code == 404
    assert httpx.post(f"{server.url}/tokenize", json={"prompt": "Hi"}, headers=bearer(key)).status_code == 200


def test_what_one_request_asks_for_is_a_400_that_names_the_field(server: LiveServer) -> None:
    key = server.make_key("modest", limits={"max_tokens": 10, "n": 2})
    for fields, param in (({"max_tokens": 11}, "max_tokens"), ({"n": 3}, "n"), ({"best_of": 3}, "best_of")):
        answer = ask(server, key, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert ask(server, key, max_tokens=10, n=2).status_code == 200


def test_what_is_no_generation_counts_too(server: LiveServer) -> None:
    key = server.make_key("counting", limits={"requests_per_minute": 6})
    user = [{"role": "user", "content": "Hi"}]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/tokenize", {"prompt": "Hi"}),
        ("/detokenize", {"tokens": [3]}),
        ("/v1/embeddings", {"model": BASE, "input": [[3]]}),
        ("/v1/messages/count_tokens", {"model": BASE, "messages": user}),
        ("/v1/completions", {"model": "nobody", "prompt": "Hi"}),
    ]
    for path, body in calls:
        httpx.post(f"{server.url}{path}", json=body, headers=bearer(key), timeout=30)
    assert httpx.get(f"{server.url}/tokenizer_info", headers=bearer(key)).status_code == 200
    for path, body in calls:
        answer = httpx.post(f"{server.url}{path}", json=body, headers=bearer(key), timeout=30)
        assert answer.status_code == 429, path
        assert int(answer.headers["retry-after"]) >= 1
    anthropic = httpx.post(
        f"{server.url}/v1/messages", json={"model": BASE, "messages": user, "max_tokens": 2}, headers={"x-api-key": key}
    )
    assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (429, "rate_limit_error")


LOOKING = (
    "/v1/models",
    "/v1/models/nobody",
    "/v1/status",
    "/v1/usage",
    "/load",
    "/version",
    "/v1/adapters",
    "/v1/aliases",
)


def test_looking_and_managing_count_too(server: LiveServer) -> None:
    key = server.make_key("managing", role="owner", limits={"requests_per_minute": len(LOOKING) + 3})
    calls: list[tuple[str, str, dict[str, Any]]] = [
        *(("GET", path, {}) for path in LOOKING),
        ("PUT", "/v1/adapters/x", {"json": {"source": "hf://no/where"}}),
        ("POST", "/v1/adapters/x/versions", {"files": {"adapter_config.json": b"{}"}}),
        ("DELETE", "/v1/adapters/x", {}),
    ]
    for expected in (False, True):
        for method, path, sent in calls:
            answer = httpx.request(method, f"{server.url}{path}", headers=bearer(key), timeout=30, **sent)
            assert (answer.status_code == 429) is expected, (method, path, answer.text)
    assert int(answer.headers["retry-after"]) >= 1


def test_an_upload_is_one_of_the_requests_at_a_time_while_it_lasts(server: LiveServer) -> None:
    key = server.make_key("uploading", role="owner", limits={"concurrent_requests": 1})
    arrived, go_on = threading.Event(), threading.Event()

    def halves() -> Iterator[bytes]:
        yield b'--xx\r\ncontent-disposition: form-data; name="adapter_config.json"\r\n\r\n{'
        arrived.set()
        go_on.wait(30)
        yield b"}\r\n--xx--\r\n"

    headers = bearer(key) | {"content-type": "multipart/form-data; boundary=xx"}
    with ThreadPoolExecutor(1) as pool:
        url = f"{server.url}/v1/adapters/x/versions"
        slow = pool.submit(lambda: httpx.post(url, content=halves(), headers=headers, timeout=60))
        assert arrived.wait(30)
        while (busy := httpx.get(f"{server.url}/v1/adapters", headers=bearer(key))).status_code != 429:
            assert busy.status_code == 200
        assert "(concurrent_requests)" in busy.json()["error"]["message"]
        assert ask(server, key).status_code == 429
        go_on.set()
        assert slow.result().status_code == 422
    assert httpx.get(f"{server.url}/v1/adapters", headers=bearer(key)).status_code == 200


def test_requests_at_a_time_are_counted_until_they_end_or_their_client_leaves(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), keep_alive_s=0.05))
    key = server.make_key("narrow", limits={"concurrent_requests": 1})
    with client(server, key).completions.create(model=BASE, prompt=[3], max_tokens=9, stream=True):
        server.wait_until(lambda engine: engine.open_requests == 1)
        refused = ask(server, key)
        assert refused.status_code == 429
        assert "1 requests under way at once (concurrent_requests)" in refused.json()["error"]["message"]
    server.wait_until(lambda engine: engine.open_requests == 0)
    server.step(100)
    # The engine's side ends a moment before the request's own.
    assert client(server, key, retries=5).completions.create(model=BASE, prompt=[3], max_tokens=1).choices


def test_prompts_that_wait_are_bounded(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), keep_alive_s=0.05))
    key = server.make_key("waiting", limits={"queued_tokens": 50})
    first = client(server, key).completions.create(model=BASE, prompt=[1000] + [3] * 39, max_tokens=9, stream=True)
    server.wait_until(lambda engine: engine.open_requests == 1)
    assert "(queued_tokens)" in ask(server, key, prompt=[3] * 11).json()["error"]["message"]
    server.step()
    next(iter(first))
    server.step(100)
    assert ask(server, key, prompt=[3] * 11).status_code == 200
    first.close()
