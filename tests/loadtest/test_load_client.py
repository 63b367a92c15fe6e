"""One streamed request: what is counted, and what is called an error."""

from __future__ import annotations

import httpx
import pytest

from livery_loadtest.client import Dialect, Record, http_client, send
from livery_loadtest.target import Target
from livery_loadtest.workload import Request
from loadtest.known_server import CUT, FAILING, REFUSED, SILENT_USAGE, UNFINISHED, KnownServer


async def ask(server: KnownServer, model: str, chat: bool = False, tokens: int = 5) -> Record:
    async with http_client(10) as client:
        request = Request(model, "one two three", tokens)
        return await send(client, Target(server.name, server.url), Dialect(chat), request)


@pytest.mark.parametrize("chat", [False, True])
async def test_a_good_answer_is_read_to_the_end(faulty: KnownServer, chat: bool) -> None:
    record = await ask(faulty, "pirate", chat)
    assert record.error is None
    assert record.text == "pirate:0 pirate:1 pirate:2 pirate:3 pirate:4 "
    assert (record.output_tokens, len(record.arrivals)) == (5, 5)
    assert record.prompt_tokens == (0 if chat else 3)
    assert not record.usage_missing
    assert record.finish_reason == "length"
    times = [record.started, *record.arrivals, record.finished]
    assert times == sorted(times)


async def test_the_request_is_greedy_streamed_and_of_fixed_length(faulty: KnownServer) -> None:
    await ask(faulty, "pirate")
    (seen,) = faulty.seen
    assert seen["path"] == "/v1/completions"
    assert seen["temperature"] == 0
    assert seen["ignore_eos"] is True
    assert seen["max_tokens"] == 5
    assert seen["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (REFUSED, "http 404", "refused is not served"),
        (CUT, "stream cut", "without [DONE]"),
        (FAILING, "stream error", "the engine is gone"),
        (UNFINISHED, "no finish reason", "without a finish_reason"),
    ],
)
async def test_every_bad_answer_is_an_error(faulty: KnownServer, model: str, kind: str, message: str) -> None:
    record = await ask(faulty, model)
    assert record.error == kind
    assert message in record.error_message
    assert record.finished > record.started


async def test_missing_usage_is_counted_from_the_chunks_and_marked(faulty: KnownServer) -> None:
    record = await ask(faulty, SILENT_USAGE)
    assert record.error is None
    assert record.usage_missing
    assert record.output_tokens == 5


async def test_nobody_listening_is_an_error_in_the_record() -> None:
    nowhere = KnownServer("nowhere", [], url="http://127.0.0.1:9")
    record = await ask(nowhere, "base")
    assert record.error == "ConnectError"


async def test_the_key_is_sent_as_a_bearer_token() -> None:
    async with http_client(10, "sk-test") as client:
        assert client.build_request("GET", "http://x").headers["authorization"] == "Bearer sk-test"


def test_timeouts_are_httpx_errors() -> None:
    # send() promises never to raise; it relies on this.
    assert issubclass(httpx.ReadTimeout, httpx.HTTPError)
    assert issubclass(httpx.RemoteProtocolError, httpx.HTTPError)
