"""A request's time: said by its body, its header or the server, and over before or after its first byte."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup
from livery.engine.fake import Behaviour

CHAT = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
SHORT = 0.05  # seconds; whatever the machine, nothing answers a request whose tokens aren't let out


@pytest.fixture
def stepped(serve: Serve) -> LiveServer:
    """A server that answers nothing unless told to."""
    return serve(Setup(Behaviour(stepped=True)))


def post(server: LiveServer, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=headers, timeout=30)


@pytest.mark.parametrize("stream", [False, True])
def test_over_before_the_first_byte_it_is_a_504(stepped: LiveServer, stream: bool) -> None:
    for body, headers in (({"timeout": SHORT}, {}), ({}, {"x-request-timeout": str(SHORT)})):
        answer = post(stepped, "/v1/chat/completions", {**CHAT, "stream": stream, **body}, **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert answer.headers["x-should-retry"] == "false"
    assert stepped.engine.open_requests == 0


def test_over_after_the_first_byte_it_is_an_event_and_no_end(stepped: LiveServer) -> None:
    body = {**CHAT, "stream": True, "timeout": 2}
    stepped.step(2)
    with httpx.stream("POST", f"{stepped.url}/v1/chat/completions", json=body, timeout=30) as answer:
        text = answer.read().decode()
    assert answer.status_code == 200
    assert '"code":"deadline_exceeded"' in text
    assert "[DONE]" not in text


def test_every_route_that_computes_keeps_it(stepped: LiveServer) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": ["a", "b"], "n": 2, "max_tokens": 2},
        "/v1/responses": {"input": "Hi"},
        "/v1/messages": {"messages": CHAT["messages"], "max_tokens": 2},
        "/v1/embeddings": {"input": ["a", "b"]},
        "/v1/score": {"text_1": "a", "text_2": "b"},
    }
    for path, body in bodies.items():
        answer = post(stepped, path, {"model": BASE, **body}, **{"x-request-timeout": str(SHORT)})
        assert answer.status_code == 504, path
    assert stepped.engine.open_requests == 0


def test_the_servers_word_is_the_default_and_the_most(serve: Serve) -> None:
    server = serve(Setup(Behaviour(stepped=True), request_timeout_s=SHORT))
    for body in ({}, {"timeout": 3600}):
        assert post(server, "/v1/chat/completions", {**CHAT, **body}).status_code == 504


def test_what_is_in_time_is_answered(server: LiveServer) -> None:
    answer = post(server, "/v1/chat/completions", {**CHAT, "timeout": 60}, **{"x-request-timeout": "60"})
    assert answer.status_code == 200
    left = server.engine.requests[-1].deadline_s
    assert 0 < left < 60


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e9", "9" * 10_000])
def test_a_header_that_says_no_time_is_refused_by_name(server: LiveServer, value: str) -> None:
    answer = post(server, "/v1/chat/completions", CHAT, **{"x-request-timeout": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout")
    assert len(answer.text) < 500


@pytest.mark.parametrize("value", [0, -1, "5", True, 1e9])
def test_a_field_that_says_no_time_is_refused_by_name(server: LiveServer, value: object) -> None:
    answer = post(server, "/v1/chat/completions", {**CHAT, "timeout": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "timeout")
