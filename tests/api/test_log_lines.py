"""Log lines for machines: an object each, fields as fields, and nothing in them that a client said in confidence."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE, Serve, Setup
from livery.logs import JsonLines, TextLines, request_id

SECRET = "xylophone-canary"
ANSWER = " a harmonica answers"


@pytest.fixture
def told() -> Iterator[io.StringIO]:
    """Everything logged from debug on, as JSON lines."""
    stream, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(stream), root.level
    handler.setFormatter(JsonLines())
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    trace = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("livery.test", logging.WARNING, __file__, 1, message, args, trace)


def test_an_access_line_has_its_fields(serve: Serve, told: io.StringIO) -> None:
    server = serve(Setup(api_key="operators-own"))
    client = server.client("operators-own")
    client.completions.create(model=BASE, prompt=[5, 6, 7], max_tokens=4, extra_headers={"x-request-id": "mine"})
    server.stop()  # the line comes after the answer
    (line,) = [one for one in lines(told) if one["logger"] == "livery.access"]
    assert line["request_id"] == "mine"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/completions", 200)
    assert (line["model"], line["prompt_tokens"], line["completion_tokens"]) == (BASE, 3, 4)
    assert line["served_by"].startswith(f"{BASE}@")
    assert (line["outcome"], line["level"], line["tenant"]) == ("length", "info", "default")
    assert 0 < line["first_token_s"] <= line["total_s"]
    assert line["time"].endswith("Z")


def test_no_prompt_answer_or_key_is_in_logs_metrics_or_errors(serve: Serve, told: io.StringIO) -> None:
    key = f"key-{SECRET}"
    server = serve(Setup(api_key=key, metrics_key="scraper"))
    server.engine.behaviour.script = lambda _: server._tokenizer.encode(ANSWER)
    client = server.client(key)
    said: Any = [{"role": "user", "content": f"My secret is {SECRET}."}]
    answer = client.chat.completions.create(model=BASE, messages=said, max_tokens=8)
    assert (answer.choices[0].message.content or "").strip() == ANSWER.strip()
    errors = []
    server.engine.behaviour.fail_after = 1
    for asked in ({"model": BASE}, {"model": BASE, "temperature": 9}, {"model": BASE, "max_tokens": 100_000}):
        with pytest.raises(openai.APIStatusError) as failed:
            client.chat.completions.create(messages=said, **asked)  # type: ignore[call-overload]
        errors.append(failed.value.response.text)
    with pytest.raises(openai.AuthenticationError) as refused:
        server.client(f"wrong-{SECRET}").models.list()
    errors.append(refused.value.response.text)
    scraped = httpx.get(f"{server.url}/metrics", headers={"authorization": "Bearer scraper"}, timeout=30).text
    server.stop()
    everything = [told.getvalue(), scraped, *errors]
    assert "livery.access" in told.getvalue() and "livery_http_requests_total{" in scraped
    for text in everything:
        assert SECRET not in text
        assert "harmonica" not in text


def test_a_request_is_named_by_what_is_logged_on_its_way() -> None:
    token = request_id.set("req_1")
    try:
        assert json.loads(JsonLines().format(record("it %s", "rains")))["request_id"] == "req_1"
    finally:
        request_id.reset(token)
    assert "request_id" not in json.loads(JsonLines().format(record("it rains")))


def test_nothing_that_is_named_ends_a_line() -> None:
    evil = "pirate\n2026-01-01 INFO livery.access forged\x1b[2J\u2028"
    text = TextLines().format(record("adapter %s is gone", evil))
    assert text.isprintable() and "pirate\\n2026" in text and "\\x1b[2J\\u2028" in text
    assert JsonLines().format(record("adapter %s is gone", evil)).isprintable()
    try:
        raise ValueError(evil)
    except ValueError as error:
        failed = record("failed", error=error)
    first, *trace = TextLines().format(failed).split("\n")
    assert first.endswith("livery.test failed")
    assert trace and all(part.startswith("    | ") for part in trace)
    assert "ValueError: pirate" in json.loads(JsonLines().format(failed))["traceback"]
