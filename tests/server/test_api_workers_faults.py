"""Several API workers: what of keys, limits and connections each knows of the others, one that is killed, and a stop
while they start.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from socket import create_connection, socket

import httpx
import pytest

from api.peft_files import make_adapter
from chaos import common
from cli.processes import ENVIRON, SERVE_FAKE, url_in
from server.workers import (
    PATIENCE_S,
    PROC,
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

CONNECTIONS = 16
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
    flags = ("--admin-port", "0", "--max-connections", str(CONNECTIONS), *STOPPABLE)
    with two_workers(folder, *flags, connect=over_tcp, admin=admin_over_tcp) as made:
        yield made
        pids = made.pids
    for pid in pids:  # the first process was killed
        until(lambda pid=pid: state_of(pid) == "", "without it no worker is left")


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


def test_told_to_stop_while_workers_start_it_ends_as_with_one(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    flags = ("--port", "0", "--model", "smollm2-135m-instruct", "--adapters", str(tmp_path / "adapters"))
    command = [*SERVE_FAKE, "serve", *flags, "--data", str(tmp_path / "data"), "--api-workers", "2"]
    with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:

        def starting() -> list[int]:
            return [pid for pid in common.children(process.pid) if b"livery.commands.api_worker" in common.command(pid)]

        until(lambda: len(starting()) == 2, "its workers are started")
        workers = starting()
        for pid in workers:
            stop(pid)  # it won't serve before the signal has come
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert [state_of(pid) for pid in workers] == ["", ""]
        assert process.stdout is not None
        assert b"Ctrl-C" not in process.stdout.read(), "it had not served"
