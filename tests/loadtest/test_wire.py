"""One request over a real socket: connections are kept, and whatever a server does has its kind."""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from livery_loadtest import wire
from livery_loadtest.reader import Answer
from livery_loadtest.record import Record
from livery_loadtest.script import Planned
from livery_loadtest.wire import BUFFER, MOST_HEAD, Failed, Left, Pool
from loadtest.raw_server import END, HEAD, answering, chunk, ending, good, raw_server, read_request, says

GOOD = good("a", "b", "c")
REFUSAL = b'HTTP/1.1 503 Busy\r\nretry-after: 2\r\ncontent-length: 30\r\n\r\n{"error":{"message": "later"}}'


@asynccontextmanager
async def pool_of(
    url: str, silence_s: float = 20.0, connect_s: float = 20.0, whole_s: float = 20.0
) -> AsyncIterator[Pool]:
    pool = Pool(url, silence_s, connect_s, whole_s)
    await pool.open()
    try:
        yield pool
    finally:
        pool.close()


async def ask(pool: Pool, body: bytes = b"{}", leave_after: int | None = None) -> Record:
    record = Record(Planned(0, 0.0, "m", "hello", 3, leave_after=leave_after), 0.0)
    try:
        await pool.exchange(pool.post("/v1/completions", body, "k"), Answer(record, keep_text=True))
    except Failed as failure:
        record.error, record.error_message = failure.kind, str(failure)
    except Left:
        pass
    return record


async def test_a_good_answer_is_read_and_its_connection_kept() -> None:
    connections, bodies = [], []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while True:
            bodies.append(await read_request(reader))
            writer.write(GOOD)

    async with raw_server(handle) as url, pool_of(url) as pool:
        first, second = await ask(pool, b"1"), await ask(pool, b"2")
        both = await asyncio.gather(ask(pool, b"3"), ask(pool, b"4"))
    for record in (first, second, *both):
        assert (record.error, record.text, record.output_tokens, record.cached_tokens) == (None, "abc", 3, 2)
        assert record.sent <= record.events[0] <= record.finished
    assert sorted(bodies) == [b"1", b"2", b"3", b"4"]
    assert len(connections) == 2
    assert 0 < first.connected <= first.sent
    assert second.connected == 0.0


async def test_events_have_the_times_at_which_they_came() -> None:
    seen = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + says("a") + says("b"))
        await seen.wait()
        writer.write(says("c") + ending(3))
        await reader.read()

    async with raw_server(handle) as url, pool_of(url) as pool:
        record = Record(Planned(0, 0.0, "m", "hello", 3), 0.0)
        asking = asyncio.ensure_future(pool.exchange(pool.post("/", b"{}", None), Answer(record)))
        while len(record.events) < 2:
            await asyncio.sleep(0)
        seen.set()
        await asking
    first, second, third = record.events
    assert record.sent < first <= second < third <= record.finished


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (b"garbage\r\n\r\n", "bad http", "Expected HTTP/"),
        (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", "bad http", ""),
        (b"", "no answer", "without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "stream cut", "in the middle"),
        (HEAD + says("a"), "stream cut", "in the middle"),
        (HEAD + says("a") + END, "stream cut", "without [DONE]"),
        (HEAD + b"zz\r\n", "bad http", "chunk"),
        (HEAD + END, "no events", "text/event-stream"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>", "no events", "'text/html'"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nxx", "stream cut", "in the middle"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-y: " + b"z" * (MOST_HEAD + BUFFER), "head too large", "headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-y: z\r\n" * (MOST_HEAD // 4), "head too large", "headers"),
        (HEAD + says("a") + b"0\r\nx-y: " + b"z" * (MOST_HEAD + BUFFER), "head too large", "around a body"),
        (HEAD + ending(0, None), "no finish reason", "finish_reason"),
        (REFUSAL, "http 503", "later"),
    ],
)
async def test_every_bad_answer_has_its_kind(answer: bytes, kind: str, message: str) -> None:
    async with answering(answer, close=True) as url, pool_of(url) as pool:
        record = await ask(pool)
    assert record.error == kind
    assert message in record.error_message
    assert record.retry_after_s == (2.0 if kind == "http 503" else None)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n" + GOOD,
        GOOD.replace(b"transfer-encoding: chunked", b"connection: close\r\ntransfer-encoding: chunked"),
        GOOD + b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_unusual_answers_are_answers(answer: bytes) -> None:
    async with answering(answer) as url, pool_of(url) as pool:
        for _ in range(2):
            record = await ask(pool)
            assert (record.error, record.text) == (None, "abc")


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    events = b'data: {"choices": [{"text": "a", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    async with answering(b"HTTP/1.0 200 OK\r\n\r\n" + events, close=True) as url, pool_of(url) as pool:
        record = await ask(pool)
    assert (record.error, record.text, record.finish_reason) == (None, "a", "stop")


async def test_a_body_that_never_ends_after_its_answer_did_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LINGER_S", 0.01)
    async with answering(GOOD.removesuffix(END)) as url, pool_of(url, silence_s=60) as pool:
        async with asyncio.timeout(30):
            records = [await ask(pool), await ask(pool)]
    assert [record.error for record in records] == [None, None]
    assert all(record.connected for record in records)


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + says("a")])
async def test_a_server_that_hangs_is_silent(said: bytes) -> None:
    async with answering(said) as url, pool_of(url, silence_s=0.05) as pool:
        record = await ask(pool)
    assert record.error == "silent"
    assert "0.05 s" in record.error_message


async def test_keeping_the_line_busy_is_silence_too() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        while True:
            writer.write(chunk(b": ping\n\n"))
            await writer.drain()
            await asyncio.sleep(0.001)

    async with raw_server(handle) as url, pool_of(url, silence_s=0.05) as pool:
        assert (await ask(pool)).error == "silent"


async def test_an_answer_that_drips_without_an_end_is_too_slow() -> None:
    """It is never silent, and has fewer events than an endless answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        while True:
            writer.write(says("a"))
            await writer.drain()
            await asyncio.sleep(0.005)

    async with raw_server(handle) as url, pool_of(url, whole_s=0.1) as pool:
        record = await ask(pool)
    assert record.error == "too slow"
    assert "whole after 0.1 s" in record.error_message
    assert record.events


def reset(writer: asyncio.StreamWriter) -> None:
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, no seconds: closing resets
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def test_a_connection_that_breaks_is_told_from_one_that_ends() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        reset(writer)

    async with raw_server(handle) as url, pool_of(url) as pool:
        assert (await ask(pool)).error == "connection reset"


async def test_a_kept_connection_that_the_server_closed_costs_a_second_try_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "STALE_S", 60.0)  # a machine may be slow
    bodies = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = not bodies
        bodies.append(await read_request(reader))
        writer.write(GOOD)
        if first:
            bodies.append(await read_request(reader))

    async with raw_server(handle) as url, pool_of(url) as pool:
        first, second = await ask(pool, b"1"), await ask(pool, b"2")
    assert (first.error, first.retried) == (None, False)
    assert (second.error, second.retried) == (None, True)
    assert bodies == [b"1", b"2", b"2"]
    assert second.sent < second.connected < second.events[0]  # sent is the first time


@pytest.mark.parametrize(("resets", "kind"), [(False, "no answer"), (True, "connection reset")])
async def test_a_server_that_drops_a_request_it_had_is_not_asked_again(resets: bool, kind: str) -> None:
    bodies = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await read_request(reader))
        writer.write(GOOD)
        bodies.append(await read_request(reader))
        await asyncio.sleep(1.5 * wire.STALE_S)  # the time a server may take is what this is about
        if resets:
            reset(writer)

    async with raw_server(handle) as url, pool_of(url) as pool:
        first, second = await ask(pool, b"1"), await ask(pool, b"2")
    assert (first.error, second.error, second.retried) == (None, kind, False)
    assert bodies == [b"1", b"2"]


async def test_a_server_that_speaks_unasked_loses_its_connection() -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(GOOD)
        await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 408 Timeout\r\n\r\n")
        await reader.read()
        gone.set()

    async with raw_server(handle) as url, pool_of(url) as pool:
        assert (await ask(pool)).error is None
        async with asyncio.timeout(30):
            await gone.wait()


async def test_nobody_there_has_kinds_of_its_own() -> None:
    with socket.socket() as bound:  # bound, and not listening
        bound.bind(("127.0.0.1", 0))
        async with pool_of(f"http://127.0.0.1:{bound.getsockname()[1]}") as pool:
            assert (await ask(pool)).error == "connection refused"
    with pytest.raises(Failed, match="no-such-host") as failure:
        await Pool("http://no-such-host.invalid", 1, 1).open()
    assert failure.value.kind == "unknown host"


async def test_a_server_that_never_takes_a_connection_is_not_waited_for() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(handle) as url, pool_of(url.replace("http:", "https:"), connect_s=0.05) as pool:
        record = await ask(pool)
    assert record.error == "connect timeout"


async def test_the_clients_own_lack_of_descriptors_is_no_fault_of_the_server() -> None:
    async with answering(GOOD) as url, pool_of(url) as pool:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as last:
            resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, hard))
            try:
                record = await ask(pool)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert record.error in wire.OWN_FAILURES
    assert "ulimit" in record.error_message


def reading_to_the_end(bodies: list[bytes], ended: asyncio.Event, said: bytes) -> Callable[..., Awaitable[None]]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await read_request(reader))
        writer.write(said)
        try:
            await reader.read()
        finally:
            ended.set()

    return handle


@pytest.mark.parametrize(("leave_after", "said"), [(0, b""), (2, HEAD + says("a") + says("b"))])
async def test_a_client_that_leaves_has_sent_all_and_closes_its_connection(leave_after: int, said: bytes) -> None:
    bodies: list[bytes] = []
    ended = asyncio.Event()
    large = b"x" * (8 << 20)
    async with raw_server(reading_to_the_end(bodies, ended, said)) as url, pool_of(url) as pool:
        record = await ask(pool, large, leave_after)
        async with asyncio.timeout(30):
            await ended.wait()
    assert (record.left, record.error, len(record.events)) == (True, None, leave_after)
    assert bodies == [large]


async def test_giving_up_closes_the_connection() -> None:
    bodies: list[bytes] = []
    ended = asyncio.Event()
    async with raw_server(reading_to_the_end(bodies, ended, HEAD)) as url, pool_of(url) as pool:
        asking = asyncio.ensure_future(ask(pool))
        while not bodies:
            await asyncio.sleep(0)
        asking.cancel()
        async with asyncio.timeout(30):
            await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


def certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1, in one file."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "server.pem"
    file.write_bytes(private + signed.public_bytes(pem))
    return file


async def test_tls_is_spoken_to_servers_that_are_who_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await read_request(reader)
                writer.write(GOOD)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        async with pool_of(url) as stranger:
            assert (await ask(stranger)).error == "tls failed"
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        async with pool_of(url) as pool:
            for _ in range(2):
                record = await ask(pool)
                assert (record.error, record.text) == (None, "abc")
            assert record.connected == 0.0
