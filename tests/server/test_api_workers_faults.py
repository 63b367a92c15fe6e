"""Several API workers whose tokens come when a test says so: killed, hung and told to stop under streams, and what of
keys, limits, room, connections and adapters each knows of the others.
"""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from socket import create_connection, socket

import httpx
import pytest

from api.peft_files import make_adapter
from certificates import certificate
from chaos import common
from cli.processes import ENVIRON, SERVE_FAKE, url_in
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore, UsageStore
from livery.tenancy.meter import Counts
from livery.tenancy.usage import Question
from server.worker_processes import (
    LONG,
    PATIENCE_S,
    PROC,
    PROMPT,
    STOPPABLE,
    Connect,
    Stepped,
    only,
    refusal,
    state_of,
    stop,
    two_workers,
    until,
)

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="looks at processes in /proc")

ROOM, CONNECTIONS = 3, 16
ROOT = {"authorization": "Bearer root"}


def over_tcp(printed: str) -> Connect:
    return lambda: httpx.Client(base_url=url_in(printed))


def admin_over_tcp(printed: str) -> Connect:
    found = re.search(r"admin API on (http://\S+)", printed)
    assert found, printed
    return lambda: httpx.Client(base_url=found.group(1), headers=ROOT)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stepped]:
    folder = tmp_path_factory.mktemp("stepped")
    for seed in (1, 2):
        make_adapter(folder / "adapters" / ".pool" / str(seed), seed=seed)
    flags = ("--admin-port", "0", "--max-open", str(ROOM), "--max-connections", str(CONNECTIONS), *STOPPABLE)
    with two_workers(folder, *flags, connect=over_tcp, admin=admin_over_tcp) as made:
        yield made
        pids = made.pids
    for pid in pids:  # the first process was killed
        until(lambda pid=pid: state_of(pid) == "", "without it no worker is left")


@pytest.fixture(scope="module")
def used(server: Stepped) -> Iterator[Callable[[str], Counts]]:
    """What the database says that a key used."""
    with closing(TenantStore.open(DataFolder(server.data).tenants_url(None))) as store:
        usage = UsageStore(store.database)
        yield lambda key: usage.report(Question(by=(), key=key))[0].counts


def test_keys_made_and_revoked_by_one_are_so_for_the_other_at_once(server: Stepped) -> None:
    pids = server.pids

    def opens(key: str) -> list[int]:
        found = []
        for pid in pids:
            with only(pid, *pids):
                found.append(server.call("GET", "/v1/models", key).status_code)
        return found

    for number, here in enumerate(pids):
        made = server.managed("POST", "/keys", here, tenant=f"tenant-{number}")
        assert opens(made["key"]) == [200, 200]
        server.managed("DELETE", f"/keys/{made['id']}", here)
        assert opens(made["key"]) == [401, 401]


def test_what_a_minute_allows_one_worker_has_used_for_the_other(server: Stepped) -> None:
    pids = server.pids
    for here, there in (pids, pids[::-1]):
        _, key = server.key("slow", requests_per_minute=1)
        with only(here, *pids):
            assert server.call("GET", "/v1/models", key).status_code == 200
        with only(there, *pids):
            assert refusal(server.call("GET", "/v1/models", key)) == (429, "rate_limit_exceeded")


def test_what_one_worker_changes_shows_on_the_other_also_under_its_streams(server: Stepped) -> None:
    one, other = pids = server.pids
    with server.at(one) as client:
        client.headers = httpx.Headers(server.headers())

        def change(method: str, path: str, **body: object) -> dict[str, object]:
            answer = client.request(method, f"/v1/{path}", json=body or None, timeout=PATIENCE_S)
            assert answer.is_success, answer.text
            found: dict[str, object] = answer.json()
            return found

        def served(model: str) -> str:
            with only(other, *pids):
                return str(server.ask(model).headers["x-livery-adapter"])

        first = change("PUT", "adapters/pirate", source=".pool/1")
        second = change("PUT", "adapters/pirate", source=".pool/2")
        change("PUT", "adapters/corsair", source=".pool/1")
        change("PUT", "aliases/prod", targets=[{"adapter": "pirate", "weight": 1}])
        names = [f"pirate@{str(version['digest'])[:12]}" for version in (first, second)]
        assert (served("pirate"), served("prod")) == (names[1], names[1])
        stream = server.stream(other, "pirate")
        change("POST", "adapters/pirate/activate", version=str(first["digest"])[:12])
        change("PUT", "aliases/prod", targets=[{"adapter": "corsair", "weight": 1}])
        assert served("pirate") == names[0]
        assert served("prod").startswith("corsair@")
        assert stream.answer.headers["x-livery-adapter"] == names[1]

        gone = change("DELETE", "adapters/pirate")
        assert (gone["state"], gone["requests"]) == ("draining", 1)
        for pid in pids:
            with server.at(pid) as asking:
                found = asking.get("/v1/adapters/pirate", headers=server.headers()).json()
                assert (found["state"], found["requests"]) == ("draining", 1)
            with only(pid, *pids):
                assert server.refused("pirate") == (404, "model_not_found")
        assert server.meanwhile(stream.rest) == "[DONE]"
        assert stream.tokens == LONG
        until(lambda: client.get("/v1/adapters/pirate").status_code == 404, "it is gone with its last request")


def upload(server: Stepped, name: str) -> bytes:
    """A whole request."""
    folder = server.data.parent / "adapters" / ".pool" / "1"
    files = {file: (folder / file).read_bytes() for file in ("adapter_config.json", "adapter_model.safetensors")}
    with server.connect() as client:
        path = f"/v1/adapters/{name}/versions"
        asked = client.build_request("POST", path, files=files, headers=server.headers())
    body = asked.read()
    head = "".join(f"{header}: {value}\r\n" for header, value in asked.headers.items())
    return f"POST {asked.url.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def connected(server: Stepped) -> socket:
    with server.connect() as client:
        return create_connection((client.base_url.host, client.base_url.port or 80), PATIENCE_S)


LOADING, UNKNOWN = (503, "adapter_loading"), (404, "model_not_found")


def test_what_is_on_its_way_in_through_one_worker_the_other_knows_of(server: Stepped) -> None:
    """Half of an upload has come; the rest comes at the end."""
    one, other = pids = server.pids
    whole = upload(server, "coming")
    half = len(whole) // 2
    with ExitStack() as stack:
        with only(one, *pids):
            client = stack.enter_context(closing(connected(server)))
            client.sendall(whole[:half])
            until(lambda: server.refused("coming") == LOADING, "it is on its way in")
        with only(other, *pids):
            assert server.refused("coming") == LOADING
            assert server.refused("another") == UNKNOWN
        client.sendall(whole[half:])
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 20")
    for pid in pids:
        with only(pid, *pids):
            assert server.ask("coming").headers["x-livery-adapter"].startswith("coming@")


def test_connections_are_bounded_over_both_and_a_killed_worker_has_none(server: Stepped) -> None:
    """Nor is anything on its way in through it any more."""
    one, other = pids = server.pids
    with ExitStack() as kept:

        def keep() -> bool:
            """Another connection to whoever runs, with a head that stays half sent; whether it may stay."""
            made = kept.enter_context(closing(connected(server)))
            made.sendall(b"GET /health HTTP/1.1\r\nhost: server\r\n\r\n")
            answer = made.recv(1 << 12)
            if answer.startswith(b"HTTP/1.1 200"):
                made.sendall(b"G")
                return True
            assert answer.startswith(b"HTTP/1.1 503"), answer
            assert b"too_many_connections" in answer
            return False

        with only(one, *pids):
            half_sent = kept.enter_context(closing(connected(server)))
            half_sent.sendall(upload(server, "never")[:-1])
            until(lambda: server.refused("never") == LOADING, "it is on its way in")
            count = 1
            while count < CONNECTIONS - 3:
                assert keep(), "more than half of them may be one worker's"
                count += 1
        with only(other, *pids):
            assert keep(), "there is room yet"
            count += 1
            while keep():
                count += 1
            assert count <= CONNECTIONS
            os.kill(one, signal.SIGKILL)
            until(lambda: server.call("GET", "/health").status_code == 200, "those of the killed worker are gone")
            assert all(keep() for _ in range(3))
    until(lambda: all(worker["serving"] for worker in server.workers), "it is started anew")
    pids = server.pids
    for pid in pids:
        with only(pid, *pids):
            assert server.refused("never") == UNKNOWN


def test_a_killed_worker_takes_its_own_streams_and_gives_back_what_they_held(
    server: Stepped, used: Callable[[str], Counts]
) -> None:
    """What it counted for the bill is there to its last second, once."""
    one, other = pids = server.pids
    restarts = [worker["restarts"] for worker in server.workers]
    server.managed("POST", "/tenants", one, name="acme", limits={"concurrent_requests": 2})
    keys = [server.key("acme"), server.key("acme"), server.key("zeta")]
    lost, kept = server.stream(one, key=keys[0][1]), server.stream(other, key=keys[1][1])
    for pid in pids:
        with only(pid, *pids):
            assert server.refused(key=keys[0][1]) == (429, "rate_limit_exceeded")
    third = server.stream(other, key=keys[2][1])
    _, more = server.key("yota")
    for pid in pids:
        with only(pid, *pids):
            assert server.refused(key=more) == (503, "engine_overloaded")
    written = lost.tokens
    until(lambda: used(keys[0][0]).completion_tokens >= written, "its tokens are written while it runs")
    before = server.series()
    server.compute(9)  # three for each of three that wait in turn
    lost.reach(written + 3)
    os.kill(one, signal.SIGKILL)
    with pytest.raises(httpx.TransportError):
        lost.rest()
    again = [restarts[0] + 1, restarts[1]]
    until(lambda: [worker["restarts"] for worker in server.workers if worker["serving"]] == again, "it is started anew")
    assert server.ask(key=more).status_code == 200, "its place in the room is free"
    for stream in (kept, third):
        assert (server.meanwhile(stream.rest), stream.tokens) == ("[DONE]", LONG)
    assert server.ask(key=keys[0][1]).status_code == 200

    assert [worker["restarts"] for worker in server.workers] == [restarts[0] + 1, restarts[1]]
    after = server.series()
    assert after["livery_api_worker_restarts_total"] == before["livery_api_worker_restarts_total"] + 1
    assert after["livery_api_workers"] == 2
    kinds, passing = ("_total", "_count", "_sum", "_bucket"), ("adapter=", "tenant=")  # series that end with a name
    counters = [name for name in before if name.partition("{")[0].endswith(kinds)]
    counters = [name for name in counters if not any(label in name for label in passing)]
    assert len(counters) > 20
    assert [name for name in counters if after.get(name, 0) < before[name]] == []
    until(lambda: used(keys[2][0]).completion_tokens == LONG, "what was used is written")
    until(lambda: used(keys[1][0]) == Counts(1, len(PROMPT), 0, LONG), "once")
    until(lambda: used(keys[0][0]).requests == 2, "that after the restart too")
    left = used(keys[0][0])
    assert (left.requests, left.prompt_tokens) == (2, 2 * len(PROMPT))
    assert written + 1 <= left.completion_tokens <= lost.tokens + 1


def over_tls(folder: Path, port: str) -> Callable[[str], Connect]:
    trust = ssl.create_default_context(cafile=str(folder / "cert.pem"))

    def connect(printed: str) -> Connect:
        found = re.search(port + r" (?:\S+ )?on https://127\.0\.0\.1:(\d+)", printed)
        assert found, printed
        return lambda: httpx.Client(base_url=f"https://localhost:{found.group(1)}", verify=trust)

    return connect


def each_answers(server: Stepped) -> None:
    """A request and one of management through each worker."""
    pids = server.pids
    for pid in pids:
        with only(pid, *pids):
            assert server.ask().json()["usage"]["completion_tokens"] == 1
            with server.admin() as client:
                answer = client.get("/admin/v1/keys", headers=ROOT)
            assert answer.status_code == 200, answer.text


def test_told_to_stop_over_tls_streams_of_both_come_to_their_end(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    flags = ("--admin-port", "0", "--ssl-certfile", str(cert), "--ssl-keyfile", str(key), *STOPPABLE)
    public, admin = over_tls(tmp_path, "serves"), over_tls(tmp_path, "admin API")
    with two_workers(tmp_path, *flags, connect=public, admin=admin) as server:
        each_answers(server)
        pids = server.pids
        streams = [server.stream(pid) for pid in pids]
        server.process.send_signal(signal.SIGTERM)
        for pid in pids:
            with only(pid, *pids):
                until(lambda: server.call("GET", "/ready").status_code == 503, "it takes nobody in")
                assert server.refused() == (503, "engine_overloaded")
        for stream in streams:
            assert (server.meanwhile(stream.rest), stream.tokens) == ("[DONE]", LONG)
        assert server.process.wait(PATIENCE_S) == 0
        assert [state_of(pid) for pid in pids] == ["", ""]


def over_uds(file: Path) -> Callable[[str], Connect]:
    return lambda _: lambda: httpx.Client(transport=httpx.HTTPTransport(uds=str(file)), base_url="http://localhost")


def test_a_worker_that_hangs_is_replaced_and_a_second_signal_ends_all_at_a_unix_socket(tmp_path: Path) -> None:
    public, admin = tmp_path / "livery.sock", tmp_path / "admin.sock"
    flags = ("--uds", str(public), "--admin-uds", str(admin), "--hang-timeout", "6")
    with two_workers(tmp_path, *flags, connect=over_uds(public), admin=over_uds(admin)) as server:
        each_answers(server)
        one, other = server.pids
        lost, kept = server.stream(one), server.stream(other)
        stop(one)
        assert server.ask().status_code == 200, "the other serves"
        until(lambda: state_of(one) == "", "it is ended")
        with pytest.raises(httpx.TransportError):
            lost.rest()
        until(lambda: all(worker["serving"] for worker in server.workers), "it is started anew")
        assert [worker["restarts"] for worker in server.workers] == [1, 0]
        pids = server.pids
        assert pids[0] != one
        streams = [server.stream(pids[0]), kept]
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.call("GET", "/ready").status_code == 503, "it was told once")
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            assert "error" in stream.rest()
        assert server.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        for pid in pids:
            until(lambda: state_of(pid) == "", "no worker is left")  # noqa: B023


def test_told_to_stop_while_workers_start_it_ends_as_with_one(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    flags = ("--port", "0", "--model", "smollm2-135m-instruct", "--adapters", str(tmp_path / "adapters"))
    command = [*SERVE_FAKE, "serve", *flags, "--data", str(tmp_path / "data"), "--api-workers", "2"]
    with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:

        def starting() -> list[int]:
            return [pid for pid in common.children(process.pid) if b"livery.running.api_worker" in common.command(pid)]

        until(lambda: len(starting()) == 2, "its workers are started")
        workers = starting()
        for pid in workers:
            stop(pid)  # it won't serve before the signal has come
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert [state_of(pid) for pid in workers] == ["", ""]
        assert process.stdout is not None
        assert b"Ctrl-C" not in process.stdout.read(), "it had not served"
