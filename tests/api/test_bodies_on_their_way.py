"""Bodies before they are read: who may send one, how many bytes of them there may be, and whose is read next."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.live_server import BASE, LiveServer, Serve
from livery.admission import Admission
from livery.api.boundary import MAX_BODY
from livery.beside import LONG, READING
from livery.tenancy.room import Space

MOST = 100_000  # bytes of bodies, in the tests that bound them narrowly
COMPLETION = json.dumps({"model": BASE, "prompt": [3, 4], "max_tokens": 1}).encode()


class Sender:
    """A connection on which a request's head is sent, and its body, or a part of it, when the test says so."""

    def __init__(self, server: LiveServer, key: str, length: int | None, path: str = "/v1/completions") -> None:
        place = urlsplit(server.url)
        self.socket = socket.create_connection((place.hostname, place.port), timeout=30)
        size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = [f"POST {path} HTTP/1.1", "host: here", "content-type: application/json", size, "connection: close"]
        self.send("\r\n".join([*lines, f"authorization: Bearer {key}", "", ""]).encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and body, once the server has said them."""
        raw = bytearray()
        while piece := self.socket.recv(1 << 16):
            raw += piece
        head, _, body = bytes(raw).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, json.loads(body)

    def refusal(self) -> tuple[int, str]:
        status, headers, body = self.answer()
        assert int(headers["retry-after"]) >= 1
        return status, body["error"]["code"]

    def close(self) -> None:
        self.socket.close()


@contextmanager
def sending(*args: Any, **more: Any) -> Iterator[Sender]:
    sender = Sender(*args, **more)
    yield sender
    sender.close()


def until(server: LiveServer, bodies: int) -> None:
    """Until the bodies under way hold so many bytes."""

    async def held() -> int:
        return server.service.admission.bodies.stock.held

    for _ in range(100_000):
        if server.call(held()) == bodies:
            return
    raise AssertionError(f"{server.call(held())} bytes are held, not {bodies}")


def narrowed(server: LiveServer) -> Admission:
    """The server, taking in few bytes at a time."""
    server.service.admission.bodies = Space("bytes of request bodies", MOST)
    return server.service.admission


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/adapters/x", "/tokenize", "/v1/messages"])
def test_who_is_over_its_rate_is_told_before_its_body_comes(server: LiveServer, path: str) -> None:
    key = server.make_key("often", role="owner", limits={"requests_per_minute": 1})
    httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=30)
    with sending(server, key, MAX_BODY, path) as flood:
        status, headers, _ = flood.answer()
        assert status == 429
        assert int(headers["retry-after"]) >= 1


def test_a_request_counts_while_its_body_comes(server: LiveServer) -> None:
    key = server.make_key("narrow", limits={"concurrent_requests": 1})
    with sending(server, key, len(COMPLETION)) as slow:
        slow.send(COMPLETION[:1])
        until(server, len(COMPLETION))
        with sending(server, key, len(COMPLETION)) as second:
            assert second.refusal() == (429, "rate_limit_exceeded")
        slow.send(COMPLETION[1:])
        assert slow.answer()[0] == 200
    client = server.client(key, retries=5)  # the answer is out a moment before its request has ended
    assert client.completions.create(model=BASE, prompt=[3, 4], max_tokens=1).choices


def test_a_request_that_was_refused_or_left_gives_back_all(server: LiveServer) -> None:
    key = server.make_key("leaving", limits={"concurrent_requests": 1})
    with sending(server, key, 5000) as leaves:
        leaves.send(b"{")
        until(server, 5000)
    until(server, 0)
    headers = {"authorization": f"Bearer {key}"}
    for body in (b"{", b"[]", b'{"model": "nobody", "prompt": "Hi"}', COMPLETION):
        for _ in range(2):
            for _ in range(1000):  # the one before has been answered a moment before it ends
                answer = httpx.post(f"{server.url}/v1/completions", content=body, headers=headers, timeout=30)
                if answer.status_code != 429:
                    break
            assert answer.status_code != 429
    until(server, 0)
    assert not len(server.service.admission.bodies)
    assert all(not account.concurrent for account in server.gate.limiter._accounts.values())


def test_a_flood_of_bodies_leaves_room_for_others(serve: Serve) -> None:
    server = serve()
    narrowed(server)
    flood, calm, late = (server.make_key(name) for name in ("flood", "calm", "late"))
    with ExitStack() as stack:
        for held in range(8):  # eight ninths of it
            stack.enter_context(sending(server, flood, 11_000))
            until(server, 11_000 * (held + 1))
        assert stack.enter_context(sending(server, flood, 11_000)).refusal() == (429, "rate_limit_exceeded")
        first = stack.enter_context(sending(server, calm, len(COMPLETION)))
        first.send(COMPLETION)
        assert first.answer()[0] == 200
        until(server, 88_000)
        stack.enter_context(sending(server, calm, 11_000))
        until(server, 99_000)
        assert stack.enter_context(sending(server, late, 2000)).refusal() == (503, "engine_overloaded")
    until(server, 0)


def test_a_body_of_unknown_length_counts_as_the_longest_until_it_is_there(serve: Serve) -> None:
    server = serve()
    key = server.make_key("acme", limits={"concurrent_requests": 1})
    with sending(server, key, None) as chunked:
        until(server, MAX_BODY)
        chunked.send(b"%x\r\n%s\r\n" % (len(COMPLETION), COMPLETION))
        chunked.send(b"0\r\n\r\n")
        assert chunked.answer()[0] == 200
    until(server, 0)


def test_a_body_holds_its_own_length_as_long_as_its_request(serve: Serve) -> None:
    server = serve()
    body = COMPLETION + b" " * 3000
    with sending(server, server.make_key("acme"), None) as streaming:
        server.engine.behaviour.stepped = True
        streaming.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        server.wait_until(lambda engine: engine.open_requests == 1)
        until(server, len(body))
        server.step(5)
        assert streaming.answer()[0] == 200
    until(server, 0)


@pytest.mark.parametrize("path", ["/ping", "/ready"])
def test_nobody_waits_for_the_body_of_a_probe(server: LiveServer, path: str) -> None:
    """Who sends it brings no key, so its bytes would be nobody's."""
    with sending(server, "", MAX_BODY, path) as probe:
        assert probe.answer()[0] == (200 if path == "/ping" else 405)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/tokenize"])
def test_long_bodies_wait_in_the_line_of_their_tenant(server: LiveServer, path: str) -> None:
    keys = {name: server.make_key(name) for name in ("many", "few")}
    reading, go_on = threading.Event(), threading.Event()

    def busy() -> None:
        reading.set()
        go_on.wait(30)

    done = READING.submit("nobody", busy)
    assert reading.wait(30)

    def post(name: str) -> int:
        headers = {"authorization": f"Bearer {keys[name]}"}
        return httpx.post(f"{server.url}{path}", json={"pad": "x" * LONG}, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(post, name) for name in ("many", "many", "many", "few")]
        while sum(map(len, list(READING._waiting.values()))) < 4:  # a copy: others change it meanwhile
            assert not any(one.done() for one in asked)
        assert {name: len(line) for name, line in READING._waiting.items()} == {"many": 3, "few": 1}
        go_on.set()
        assert [one.result() for one in asked] == [400] * 4
    done.result(30)
