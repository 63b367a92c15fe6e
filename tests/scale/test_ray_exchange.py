"""A request through an application in this process: pieces, backpressure, long bodies, clients that leave."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from livery.scale.ray_exchange import MOST_WAITING, AnswerCutShort, Exchange, Forwarded, Head, Running, Said, Wanted

HEAD = {"type": "http.response.start", "status": 201, "headers": [(b"x", b"y")]}


def request(body: bytes = b"", more: bool = False) -> Forwarded:
    return Forwarded(
        "livery", "POST", "http", "/v1/completions", b"a=b", ((b"host", b"here"),), ("127.0.0.1", 5), body, more
    )


async def nothing() -> bytes:
    raise AssertionError("nobody asked for more of the body")


async def said(app: ASGIApp, running: Running, asked: Forwarded | None = None) -> list[Said]:
    return [message async for message in Exchange(app, asked or request(b"body"), nothing, running).messages()]


async def test_an_answer_comes_as_a_head_and_pieces() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        message = await receive()
        await send(HEAD)
        await send({"type": "http.response.body", "body": message["body"] + b"1", "more_body": True})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"2"})

    running = Running()
    answer = await said(app, running)
    assert answer[0] == Head(201, ((b"x", b"y"),))
    assert b"".join(piece for piece in answer[1:] if isinstance(piece, bytes)) == b"body12"
    assert (seen[0]["path"], seen[0]["query_string"], seen[0]["client"]) == (
        "/v1/completions",
        b"a=b",
        ("127.0.0.1", 5),
    )
    assert all(task.done() for task in running.tasks)


async def test_what_is_there_already_is_one_piece() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        for _ in range(MOST_WAITING * 3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    answer = await said(app, Running())
    assert b"".join(piece for piece in answer[1:] if isinstance(piece, bytes)) == b"x" * MOST_WAITING * 3
    assert len(answer) < 10


async def test_an_application_waits_for_a_client_that_takes_nothing() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(HEAD)
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            sent += 1

    running = Running()
    async with aclosing(Exchange(app, request(), nothing, running).messages()) as messages:
        assert isinstance(await anext(messages), Head)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert sent <= MOST_WAITING
    await asyncio.sleep(0)
    await running.end(0.0)


async def test_a_client_that_leaves_is_noticed_and_nobody_waits() -> None:
    noticed = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(HEAD)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        noticed.set()
        await send({"type": "http.response.body", "body": b"y"})

    running = Running()
    async with aclosing(Exchange(app, request(), nothing, running).messages()) as messages:
        assert isinstance(await anext(messages), Head)
        assert await anext(messages) == b"x"
    await asyncio.wait_for(noticed.wait(), 5)
    await running.end(5.0)
    assert not running.tasks


async def test_a_long_body_is_asked_for_when_it_is_wanted() -> None:
    pieces = [b"one", b"two", b""]
    asked: list[str] = []

    async def pull() -> bytes:
        asked.append("piece")
        return pieces.pop(0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        await send(HEAD)
        await send({"type": "http.response.body", "body": body})

    answer = [message async for message in Exchange(app, request(b"", more=True), pull, Running()).messages()]
    assert answer == [Wanted(), Head(201, ((b"x", b"y"),)), b"onetwo"]
    assert len(asked) == 3


async def test_who_refuses_reads_no_long_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**HEAD, "status": 401})
        await send({"type": "http.response.body", "body": b"no"})

    assert await said(app, Running(), request(b"", more=True)) == [Head(401, ((b"x", b"y"),)), b"no"]


async def test_a_client_that_leaves_in_its_body_is_noticed() -> None:
    left = asyncio.Event()

    async def never() -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["more_body"]
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with aclosing(Exchange(app, request(b"", more=True), never, Running()).messages()) as messages:
        assert await anext(messages) == Wanted()
    await asyncio.wait_for(left.wait(), 5)


async def test_an_answer_that_breaks_off_is_told_from_one_that_ends() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    with pytest.raises(AnswerCutShort):
        await said(breaks, Running())
    with pytest.raises(AnswerCutShort) as caught:
        await said(fails, Running())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
