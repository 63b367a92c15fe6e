"""A request's time: said by its body, its header or the server, and over before or after its first byte."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from api.busy_threads import taken
from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from api.test_admission import assert_nothing_is_held
from livery.beside import ENCODING, LONG
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


LONG_TEXT = "ahoy " * LONG
BEFORE_THE_ENGINE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": LONG_TEXT},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG_TEXT}], "stream": True},
    "/v1/messages": {"messages": [{"role": "user", "content": LONG_TEXT}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": LONG_TEXT}]},
    "/v1/embeddings": {"input": [LONG_TEXT]},
    "/tokenize": {"prompt": LONG_TEXT},
    "/detokenize": {"tokens": [7] * 2 * LONG},
}


@pytest.fixture(scope="module")
def wide(module_serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> LiveServer:
    """A server of a long context with an adapter, pirate."""
    folder = tmp_path_factory.mktemp("wide")
    make_adapter(folder / "adapters" / "pirate", seed=1)
    return module_serve(Setup(max_model_len=1 << 16), folder)


def ends_in_time(server: LiveServer, path: str, body: dict[str, Any], key: str) -> None:
    """Answered 504, with nothing held any more."""
    headers = {"authorization": f"Bearer {key}", "x-request-timeout": str(SHORT)}
    answer = post(server, path, {"model": "pirate", **body}, **headers)
    assert answer.status_code == 504 and "time was up" in answer.json()["error"]["message"], answer.text
    server.call(nothing_held(server))


async def nothing_held(server: LiveServer) -> None:
    """On the event loop: an answer may be here before its request is over there."""
    assert_nothing_is_held(server.service)
    assert not server.service.adapters.under_way.of("pirate")


@pytest.fixture(scope="module")
def limited(wide: LiveServer) -> str:
    """A key with limits, so that what it holds of them is counted."""
    return wide.make_key("acme", limits={"tokens_per_minute": 10_000_000, "concurrent_requests": 8})


@pytest.mark.parametrize("path", BEFORE_THE_ENGINE)
def test_it_runs_while_a_prompt_waits_to_be_encoded(wide: LiveServer, limited: str, path: str) -> None:
    body = BEFORE_THE_ENGINE[path]
    answer = post(wide, path, {"model": "pirate", **body, "stream": None}, authorization=f"Bearer {limited}")
    assert answer.status_code == 200, answer.text
    with taken(ENCODING):
        ends_in_time(wide, path, body, limited)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/tokenize", "/tokenizer_info?model=unknown"])
def test_it_runs_while_an_adapter_is_looked_for(
    wide: LiveServer, limited: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    registry = wide.service.adapters.registry
    find = registry.find

    def slow(*arguments: Any, **keywords: Any) -> Any:
        go_on.wait(60)
        return find(*arguments, **keywords)

    monkeypatch.setattr(registry, "find", slow)
    try:
        if "?" in path:
            headers = {"authorization": f"Bearer {limited}", "x-request-timeout": str(SHORT)}
            assert httpx.get(wide.url + path, headers=headers, timeout=30).status_code == 504
            wide.call(nothing_held(wide))
        else:
            ends_in_time(wide, path, {"model": "unknown", "prompt": "a", "input": "a"}, limited)
    finally:
        go_on.set()


def test_it_runs_while_a_grammar_waits_for_its_trial(wide: LiveServer, limited: str) -> None:
    turn = wide.service.grammars._turn
    wide.call(turn.acquire())
    schema = {"type": "object", "properties": {"untried": {"type": "string"}}}
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    try:
        ends_in_time(wide, "/v1/chat/completions", {"messages": CHAT["messages"], "response_format": format}, limited)
    finally:
        wide._loop.call_soon_threadsafe(turn.release)
