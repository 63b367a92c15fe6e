"""Connections that send nothing, too much or too slowly, that take nothing, or that come while a server stops."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from certificates import certificate
from livery.api import edges
from livery.api.edges import HEAD_BYTES, EdgeConfig, EdgeServer
from livery.listening import listen
from livery.settings import Settings

BIG = 64 << 20  # bytes: more than any system buffers between two sockets
PIECE, PIECES = 4 << 10, 16 << 10


class Answering:
    """An application: `/big` is a large answer, `/pieces` one in pieces, which `look` is called after, `/wait` one that
    waits for `release`, all else is small.
    """

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.release = asyncio.Event()
        self.ended: list[str] = []
        self.look: Callable[[], int] = lambda: 0
        self.most = 0  # of what it said

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b"x" * BIG if scope["path"] == "/big" else b"done"
        try:
            if scope["path"] == "/wait":
                self.waiting.set()
                await self.release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(PIECES if scope["path"] == "/pieces" else 0):
                await send({"type": "http.response.body", "body": b"x" * PIECE, "more_body": True})
                self.most = max(self.most, self.look())
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            self.ended.append(scope["path"])


class Running:
    """A server on a thread of its own."""

    def __init__(self, app: Answering, **config: Any) -> None:
        self.app = app
        self.server = EdgeServer(EdgeConfig(app, port=0, **config))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.started = threading.Event()
        self.thread.start()
        assert self.started.wait(30)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.server.servers[0].sockets[0].getsockname()[:2]
        return host, port

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30)

    def on_loop(self, act: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(act)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        async def main() -> None:
            serving = asyncio.create_task(self.server.serve())
            while not self.server.started:
                await asyncio.sleep(0.01)
            self.started.set()
            await serving

        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(main())
        self.loop.close()


@contextmanager
def running(**config: Any) -> Iterator[Running]:
    server = Running(Answering(), **config)
    yield server
    if server.thread.is_alive():
        server.on_loop(server.app.release.set)
    server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


def read(connection: socket.socket) -> bytes:
    """All until the other side closes."""
    found = []
    while piece := connection.recv(1 << 20):
        found.append(piece)
    return b"".join(found)


def error(raw: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of an answer that closed its connection."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]


def test_a_connection_that_sends_nothing_is_closed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "HEAD_TIMEOUT_S", 0.1)
    with server.connect() as silent:
        assert read(silent) == b""


def test_a_head_that_does_not_come_to_its_end_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "HEAD_TIMEOUT_S", 0.1)
    with server.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n")
        status, told = error(read(slow))
    assert (status, told["code"]) == (408, "request_timeout")


def test_the_next_head_on_a_connection_is_bounded_too(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.connect() as kept:
        kept.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        while not (answer := kept.recv(1 << 16)).endswith(b"0\r\n\r\n"):
            assert answer
        monkeypatch.setattr(edges, "HEAD_TIMEOUT_S", 0.1)
        kept.sendall(b"GET")
        assert error(read(kept))[0] == 408


def test_a_request_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "HEAD_TIMEOUT_S", 0.05)
    with running() as server, server.connect() as patient:
        patient.sendall(b"GET /wait HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert server.app.waiting.wait(30)
        server.loop.call_soon_threadsafe(server.loop.call_later, 0.2, server.app.release.set)
        assert b"done" in read(patient)


@pytest.mark.parametrize("ended", [True, False])
def test_a_long_head_is_refused_whether_it_comes_at_once_or_not(server: Running, ended: bool) -> None:
    head = b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * (2 * HEAD_BYTES) + (b"\r\n\r\n" if ended else b"")
    with server.connect() as long:
        long.sendall(head)
        status, told = error(read(long))
    assert (status, told["type"]) == (400, "invalid_request_error")
    assert str(HEAD_BYTES) in told["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4, 5\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx : b\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_ends(server: Running, raw: bytes) -> None:
    with server.connect() as odd:
        odd.sendall(raw)
        assert error(read(odd))[0] in (400, 501)


def test_pipelined_requests_are_answered_in_turn(server: Running) -> None:
    with server.connect() as both:
        both.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert read(both).count(b"HTTP/1.1 200") == 2


def test_an_upgrade_is_not_made(server: Running) -> None:
    headers = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "a", "sec-websocket-version": "13"}
    assert httpx.get(server.url, headers=headers, timeout=30).text == "done"


def test_connections_are_counted() -> None:
    with running(max_connections=2) as server:
        with server.connect() as one, server.connect() as two, server.connect() as three:
            status, told = error(read(three))
            assert (status, told["code"]) == (503, "too_many_connections")
            for taken in (one, two):
                taken.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                assert b"done" in read(taken)
        assert httpx.get(server.url, timeout=30).text == "done"


def test_an_idle_connection_makes_room_for_another() -> None:
    def ask(connection: socket.socket) -> None:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        told = b""
        while not told.endswith(b"done\r\n0\r\n\r\n"):
            piece = connection.recv(1 << 16)
            assert piece
            told += piece

    assert EdgeConfig(Answering()).timeout_keep_alive > 60, "as long as proxies keep theirs"
    with running(max_connections=2) as server, server.connect() as first, server.connect() as second:
        for idle in (first, second, first):
            ask(idle)
        with server.connect() as third:
            assert read(second) == b"", "it has been idle longest"
            ask(first)
            ask(third)


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "STALL_S", 0.2)
    with running() as server, server.connect() as stalled:
        stalled.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
        while not server.app.ended or server.server.server_state.connections:
            assert server.thread.is_alive()  # until the answer has ended, and its connection after it
        assert len(read(stalled)) < BIG  # what the system had taken already


def test_an_answer_waits_for_its_client_piece_by_piece() -> None:
    """What the system takes counts as taken, and nothing is kept beyond the piece that it doesn't take."""
    with running() as server, server.connect() as slow:
        connections, app = server.server.server_state.connections, server.app
        app.look = lambda: max(one.transport.get_write_buffer_size() for one in connections)
        slow.sendall(b"GET /pieces HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        while not any(one.flow is not None and one.flow.write_paused for one in list(connections)):
            assert server.thread.is_alive()
        assert len(read(slow)) > PIECE * PIECES
    assert 0 < app.most < 2 * PIECE


def test_a_client_that_takes_its_time_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "STALL_S", 5.0)
    with running() as server, server.connect() as slow:
        slow.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert len(read(slow)) > BIG


def test_a_stopping_server_answers_until_what_is_under_way_has_ended() -> None:
    with running(timeout_graceful_shutdown=30) as server:
        url = server.url
        with server.connect() as kept, server.connect() as under_way:
            kept.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert kept.recv(1 << 16)
            under_way.sendall(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
            assert server.app.waiting.wait(30)
            server.server.should_exit = True
            read(kept)  # an idle connection is closed, so that its owner goes elsewhere
            for _ in range(3):
                assert httpx.get(url, timeout=30).headers["connection"] == "close"
            server.on_loop(server.app.release.set)
            assert b"done" in read(under_way)
        server.thread.join(30)
        assert not server.thread.is_alive()
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, timeout=30)


def test_who_had_connected_and_not_asked_is_answered_by_a_stopping_server() -> None:
    waiting = running(timeout_graceful_shutdown=30)
    with waiting as server, server.connect() as kept, server.connect() as under_way, server.connect() as early:
        stop_under(server, kept, under_way)
        early.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        answer = read(early)
        assert b"done" in answer and b"connection: close" in answer
        server.on_loop(server.app.release.set)
        assert b"done" in read(under_way)


def test_so_is_who_had_not_begun_the_handshake(files: dict[str, Path]) -> None:
    context = ssl.create_default_context(cafile=files["ssl_certfile"])

    def secure(plain: socket.socket) -> ssl.SSLSocket:
        return context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=True)

    with (
        running(timeout_graceful_shutdown=30, **files) as server,
        secure(server.connect()) as kept,
        secure(server.connect()) as under_way,
        server.connect() as early,
    ):
        stop_under(server, kept, under_way)
        with secure(early) as late:
            late.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert late.recv(1 << 16).startswith(b"HTTP/1.1 200")
        server.on_loop(server.app.release.set)


def stop_under(server: Running, kept: socket.socket, under_way: socket.socket) -> None:
    """Have a server stop that has an idle connection, a request under way, and one connection more."""
    kept.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert kept.recv(1 << 16)
    under_way.sendall(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
    assert server.app.waiting.wait(30)
    while len(server.server.server_state.connections) < 3:
        assert server.thread.is_alive()
    server.server.should_exit = True
    kept.settimeout(30)
    while kept.recv(1 << 16):
        continue


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A server's certificate and key, as its configuration names them."""
    cert, key = certificate(tmp_path_factory.mktemp("tls"))
    return {"ssl_certfile": cert, "ssl_keyfile": key}


def ask_securely(server: Running, files: dict[str, Path], path: str = "/") -> str:
    host, port = server.address
    context = ssl.create_default_context(cafile=files["ssl_certfile"])
    headers, extensions = {"host": "localhost"}, {"sni_hostname": "localhost"}
    with httpx.Client(verify=context, timeout=30) as client:
        first, second = (
            client.get(f"https://{host}:{port}{path}", headers=headers, extensions=extensions) for _ in range(2)
        )
    assert first.content == second.content
    return first.text


def test_a_connection_without_a_handshake_counts_and_is_closed(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(max_connections=2, **files) as server:
        with server.connect() as one, server.connect() as two:
            while len(server.server.server_state.connections) < 2:
                assert server.thread.is_alive()
            with server.connect() as third:
                assert_cut_off(third)
            assert len(server.server.server_state.connections) == 2
            for silent in (one, two):
                silent.close()
            while server.server.server_state.connections:
                assert server.thread.is_alive()
        assert ask_securely(server, files) == "done"
        monkeypatch.setattr(edges, "HEAD_TIMEOUT_S", 0.1)
        with server.connect() as silent:
            assert_cut_off(silent)
        monkeypatch.undo()
        assert len(ask_securely(server, files, "/big")) == BIG


def test_what_is_no_handshake_ends_its_connection_alone(files: dict[str, Path]) -> None:
    with running(**files) as server:
        with server.connect() as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert b"HTTP" not in read(plain)
        with server.connect() as silent:
            while not server.server.server_state.connections:
                assert server.thread.is_alive()
            server.stop()  # which waits for no handshake
            assert_cut_off(silent)


def test_a_request_may_come_with_the_end_of_its_handshake(files: dict[str, Path]) -> None:
    """In one piece, as of a client that waits for nothing."""
    context = ssl.create_default_context(cafile=files["ssl_certfile"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with running(**files) as server, server.connect() as eager:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                eager.sendall(outgoing.read())
                incoming.write(eager.recv(1 << 16))
        client.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        eager.sendall(outgoing.read())
        answer = b""
        while b"\r\n\r\n" not in answer:  # not until it closes: TLS waits for the client's farewell before that
            incoming.write(eager.recv(1 << 16))
            with suppress(ssl.SSLWantReadError):
                answer += client.read(1 << 16)
        assert answer.startswith(b"HTTP/1.1 200")


def assert_cut_off(connection: socket.socket) -> None:
    """Without a word; what the other side doesn't read may make a reset of it."""
    with suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def test_the_system_asks_whether_silent_clients_are_there() -> None:
    listener = listen(Settings(model="any", port=0))
    try:
        assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    finally:
        listener.close()
