"""Bodies of JSON that no schema rules out and nothing behind it could take."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.live_server import BASE, LiveServer, Setup
from livery.api.errors import UNEXPECTED, ApiError, error_body
from livery.api.plain_json import check_plain
from livery.foreign_json import MAX_DEPTH
from livery.reading import ParserNames
from livery.refusals import InvalidParameter
from livery.text import Tokenizer

HALF = "hello \ud83d"
USER = {"role": "user", "content": "Hi"}
CHAT: dict[str, Any] = {"model": BASE, "messages": [USER], "max_tokens": 2}


def post(server: LiveServer, path: str, body: object) -> httpx.Response:
    """Half characters travel as JSON escapes, which httpx's own writer refuses."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, headers={"content-type": "application/json"}, timeout=30)


def nested(depth: int, *, objects: bool = False) -> object:
    value: object = "end"
    for _ in range(depth):
        value = {"x": value} if objects else [value]
    return value


def called(arguments: object) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "content": "x", "tool_calls": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {**CHAT, "messages": [{**USER, "content": HALF}]}, "messages.0.content"),
        (
            "chat/completions",
            {**CHAT, "messages": [{**USER, "content": [{"type": "text", "text": HALF}]}]},
            "messages.0.content.0.text",
        ),
        ("chat/completions", {**CHAT, "messages": [{**USER, "name": HALF}]}, "messages.0.name"),
        ("chat/completions", {**CHAT, "messages": [{"role": HALF, "content": ""}]}, "messages.0.role"),
        ("chat/completions", {**CHAT, "messages": [called({HALF: 1})]}, "messages.0.tool_calls.0.function.arguments"),
        (
            "chat/completions",
            {**CHAT, "messages": [called('["\\ud83d"]')]},
            "messages.0.tool_calls.0.function.arguments.0",
        ),
        ("chat/completions", {**CHAT, "model": HALF}, "model"),
        ("chat/completions", {**CHAT, "stop": [HALF]}, "stop.0"),
        ("chat/completions", {**CHAT, HALF: 1}, None),
        ("completions", {"model": BASE, "prompt": HALF}, "prompt"),
        ("completions", {"model": BASE, "prompt": ["x", HALF]}, "prompt.1"),
        ("load_lora_adapter", {"lora_name": HALF, "lora_path": "x"}, "lora_name"),
        ("load_lora_adapter", {"lora_name": "x", "lora_path": HALF}, "lora_path"),
        ("unload_lora_adapter", {"lora_name": HALF}, "lora_name"),
        ("completions", b'{"model": "x", "prompt": "\xed\xa0\xbd"}', "prompt"),
    ],
)
def test_half_a_character_is_refused_by_name(server: LiveServer, path: str, body: object, param: str | None) -> None:
    answer = post(server, f"/v1/{path}", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert "surrogate" in error["message"]


def test_whole_pairs_are_one_character(server: LiveServer) -> None:
    whole = b'{"prompt": "\\ud83d\\ude00", "max_tokens": 1}'
    assert post(server, "/v1/completions", whole).status_code == 200


def test_an_error_that_repeats_half_a_character_can_be_written() -> None:
    answer = ApiError(400, error_body(HALF, UNEXPECTED, HALF)).response()
    assert json.loads(bytes(answer.body))["error"]["message"] == "hello ?"


@pytest.fixture(scope="module")
def calling(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that takes conversations with calls in them."""
    server = LiveServer(Setup(parsers=ParserNames(tools="hermes")), tokenizer, tmp_path_factory.mktemp("calling"))
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("depth", [MAX_DEPTH, 300, 900, 100_000])
@pytest.mark.parametrize("inside_text", [True, False])
def test_deep_nesting_is_refused(calling: LiveServer, depth: int, inside_text: bool) -> None:
    deep = "[" * depth + "]" * depth
    arguments = json.dumps(deep) if inside_text else deep
    call = f'{{"role": "assistant", "tool_calls": [{{"function": {{"name": "f", "arguments": {arguments}}}}}]}}'
    answer = post(calling, "/v1/chat/completions", f'{{"messages": [{call}], "max_tokens": 2}}'.encode())
    if inside_text and depth == MAX_DEPTH:
        assert answer.status_code == 200, answer.text  # an argument may be as deep as a body
        return
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_fields_nobody_reads_are_bounded_too(server: LiveServer) -> None:
    for objects in (True, False):
        answer = post(server, "/v1/chat/completions", {**CHAT, "metadata": nested(300, objects=objects)})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("metadata")
    assert post(server, "/v1/chat/completions", nested(300)).status_code == 400


def test_the_deepest_body_allowed() -> None:
    check_plain(nested(MAX_DEPTH, objects=True))
    with pytest.raises(InvalidParameter, match="deeper"):
        check_plain([nested(MAX_DEPTH, objects=True)])


def test_a_long_key_over_many_values_is_not_copied_for_each() -> None:
    tracemalloc.start()
    check_plain({"k" * 100_000: ["x"] * 10_000})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000  # a copy for each would take a gigabyte
