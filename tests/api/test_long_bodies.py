"""Bodies as long as a body may be: read beside the event loop, bounded in their parts, refused at the first mistake."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, model_validator
from starlette.types import ASGIApp, Receive, Scope, Send

from api.live_server import BASE, LiveServer
from livery.api import schemas
from livery.api.body import WholeBody
from livery.api.boundary import RequestRecord
from livery.api.plain_json import _STRING, MAX_PARTS, _parts, check_count
from livery.api.reading import BodyRoute
from livery.beside import LONG, weight
from livery.refusals import InvalidParameter

JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": "hi"}
READ_BY: list[str] = []


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))


class Told(WholeBody):
    text: str

    @model_validator(mode="before")
    @classmethod
    def _tell(cls, value: object) -> object:
        if isinstance(value, dict):  # and not the model that the framework looks at once more
            READ_BY.append(threading.current_thread().name)
        return value


def app_that_reads() -> ASGIApp:
    router = APIRouter(route_class=BodyRoute)

    @router.post("/told")
    async def told(body: Told) -> int:
        return len(body.text)

    app = FastAPI()
    app.include_router(router)

    async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"record": RequestRecord("req_1")}
        await app(scope, receive, send)

    return recorded


def test_long_bodies_are_read_beside_the_loop() -> None:
    async def ask() -> list[Any]:
        READ_BY.clear()
        transport = httpx.ASGITransport(app_that_reads())
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return [(await client.post("/told", json={"text": "x" * size})).json() for size in (10, LONG)]

    assert asyncio.run(ask()) == [10, LONG]
    short, long = READ_BY
    assert short == threading.current_thread().name
    assert long.startswith("livery-reading")


def post(server: LiveServer, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, content=content, headers={**JSON, **headers}, timeout=30)


@pytest.mark.parametrize(
    "extra", [[[]] * (MAX_PARTS + 1), [{}] * (MAX_PARTS + 1), {str(n): 0 for n in range(MAX_PARTS)}]
)
def test_too_many_parts_are_refused_with_the_limit(server: LiveServer, extra: object) -> None:
    answer = post(server, {"messages": [USER], "metadata": extra})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_value", "invalid_request_error")
    assert f"at most {MAX_PARTS}" in error["message"]


def test_signs_in_text_are_no_parts(server: LiveServer) -> None:
    content = '{"[:\\"' * (MAX_PARTS // 4)
    answer = post(server, {"model": BASE, "messages": [{"role": "user", "content": content}]})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_arguments_are_counted_by_themselves(server: LiveServer) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps([[]] * (MAX_PARTS + 1))}}
    answer = post(server, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages.1.tool_calls.0.function.arguments"


def test_a_compressed_body_is_refused_by_its_encoding(server: LiveServer) -> None:
    answer = post(server, gzip.compress(b"{}"), **{"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (415, "invalid_request_error")
    assert "content-encoding is 'gzip'" in answer.json()["error"]["message"]


@given(
    st.recursive(st.text(max_size=5) | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_parts_are_counted_as_parsed(value: object) -> None:
    def parts(item: object) -> int:
        if isinstance(item, list):
            return 1 + sum(map(parts, item))
        return 1 + len(item) + sum(map(parts, item.values())) if isinstance(item, dict) else 0

    for ascii_only in (True, False):
        assert _parts(_STRING.sub(b"", json.dumps(value, ensure_ascii=ascii_only).encode())) == parts(value)


def test_a_string_without_an_end_is_looked_through_once() -> None:
    """Quadratic, this would take hours."""
    with pytest.raises(InvalidParameter):
        check_count(b"[" * (MAX_PARTS + 1) + b'"' + b'\\"' * 500_000)
    check_count(b'["' + b'\\"[' * 500_000)


def bodies() -> Iterator[type[BaseModel]]:
    for name in dir(schemas):
        kind = getattr(schemas, name)
        if isinstance(kind, type) and issubclass(kind, WholeBody) and kind is not WholeBody:
            yield kind


def lists_in(schema: object) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for inner in schema.values():
            yield from lists_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from lists_in(inner)


def test_every_list_is_refused_at_its_first_wrong_item() -> None:
    found = [part for body in bodies() for part in lists_in(body.__pydantic_core_schema__)]
    assert len(found) > 5
    assert all(part["fail_fast"] for part in found)
    with pytest.raises(ValidationError) as caught:
        schemas.ChatCompletionBody.model_validate({"messages": [1] * 1000})
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("content", "headers", "code", "words"),
    [
        (b"{", {}, "invalid_value", "not valid JSON"),
        (b"[]", {}, "invalid_value", "must be a JSON object"),
        (b"null", {}, "invalid_value", "must be a JSON object"),
        (b"", {}, "missing_required_parameter", "must be a JSON object"),
        (b"{}", {"content-type": "text/plain"}, "invalid_value", "must be a JSON object"),
        (b"{}", {"content-type": "application/vnd.x+json"}, "missing_required_parameter", "messages"),
        (b'{"seed": ' + b"1" * 5000 + b"}", {}, "invalid_request", "more than 4300 digits"),
        (b'{"seed": "\xff"}', {}, "invalid_request", "not UTF-8 (byte 10)"),
        ('{"seed": "x"}'.encode("utf-16"), {}, "invalid_request", "not UTF-8 (byte 0)"),
        ('{"seed": "\u0122"}'.encode("utf-16-le"), {}, "invalid_value", "not valid JSON"),
        (b'{"x": ' + b"[" * 200_000, {}, "invalid_value", "65536 are read"),
        (b'{"x": ' + b"[" * 60_000, {}, "invalid_request", "nested deeper than 100 levels"),
        (b"\xef\xbb\xbf{}", {}, "missing_required_parameter", "messages"),  # a mark of UTF-8
        (b"{}", {"content-encoding": "identity"}, "missing_required_parameter", "messages"),
    ],
)
def test_what_is_no_body_is_refused_as_before(
    server: LiveServer, content: bytes, headers: dict[str, str], code: str, words: str
) -> None:
    answer = post(server, content, **headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == code
    assert words in error["message"]


@given(
    st.recursive(st.text(max_size=4000), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner))
)
def test_weight_says_what_is_long(value: object) -> None:
    def characters(item: object) -> int:
        if isinstance(item, str):
            return len(item)
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return sum(map(characters, inner))

    assert weight(value) >= min(characters(value), LONG + 1)
    assert weight([[]] * LONG) > LONG
