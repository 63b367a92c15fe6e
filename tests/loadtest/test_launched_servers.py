"""Launching, freezing and stopping real processes."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from livery_loadtest.servers import (
    LaunchedServer,
    LaunchSpec,
    ServerFailed,
    Sleep,
    SleepingStage,
    cpu_seconds,
    free_port,
    group_members,
    memory_mib,
)

SMALL_SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        models = '{"data": [{"id": "base"}, {"id": "pirate"}]}'
        self.wfile.write((models if self.path == "/v1/models" else os.environ["GREETING"]).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def small_server(name: str, folder: Path, expects: frozenset[str] = frozenset()) -> LaunchedServer:
    port = free_port()
    command = [sys.executable, "-c", SMALL_SERVER, str(port)]
    url = f"http://127.0.0.1:{port}"
    log, variables = folder / "logs" / name, {"GREETING": f"from {name}"}
    return LaunchedServer(LaunchSpec(name, command, url, log, variables, expects=expects))


def quiet() -> Console:
    return Console(file=StringIO())


def test_a_server_is_started_with_its_variables_and_stopped(tmp_path: Path) -> None:
    with small_server("one", tmp_path) as server:
        server.wait_ready(60, quiet())
        assert httpx.get(server.spec.url, trust_env=False).text == "from one"
        process = server.process
    assert process.returncode is not None
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.spec.url, trust_env=False)


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('out of luck')"]
    spec = LaunchSpec("unlucky", command, "http://127.0.0.1:9", tmp_path / "log")
    with LaunchedServer(spec) as server, pytest.raises(ServerFailed, match="unlucky ended with code 1") as caught:
        server.wait_ready(60, quiet())
    assert "out of luck" in str(caught.value)
    assert "arguments of" not in str(caught.value)


def test_a_servers_log_is_plain_and_the_option_its_arguments_came_from_is_named(tmp_path: Path) -> None:
    script = "import os, sys; sys.exit(' '.join(os.environ[name] for name in ('NO_COLOR', 'TERM', 'COLUMNS')))"
    told_by = "--livery-arguments '--nope'"
    spec = LaunchSpec("odd", [sys.executable, "-c", script], "http://127.0.0.1:9", tmp_path / "log", told_by=told_by)
    with LaunchedServer(spec) as server, pytest.raises(ServerFailed, match="1 dumb 200") as caught:
        server.wait_ready(60, quiet())
    assert "ended with code 1 (with the arguments of --livery-arguments '--nope');" in str(caught.value)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    spec = LaunchSpec("deaf", command, "http://127.0.0.1:9", tmp_path / "log")
    with LaunchedServer(spec) as server, pytest.raises(ServerFailed, match="was not ready within 0 s"):
        server.wait_ready(0, quiet())
    assert server.process.returncode is not None


def test_a_server_is_ready_when_it_lists_what_is_expected(tmp_path: Path) -> None:
    with small_server("one", tmp_path, frozenset({"pirate"})) as server:
        server.wait_ready(60, quiet())
        server.spec = replace(server.spec, expects=frozenset({"pirate", "parrot"}))
        with pytest.raises(ServerFailed, match="one was not ready within 0 s"):
            server.wait_ready(0, quiet())


@needs_proc
def test_only_the_server_being_measured_runs(tmp_path: Path) -> None:
    with small_server("one", tmp_path) as one, small_server("two", tmp_path) as two:
        one.wait_ready(60, quiet())
        two.wait_ready(60, quiet())
        stage = SleepingStage([one, two], Sleep.ALWAYS)
        stage.enter("one")
        os.waitid(os.P_PID, two.process.pid, os.WSTOPPED)
        assert httpx.get(one.spec.url, trust_env=False).text == "from one"
        stage.enter("two")
        os.waitid(os.P_PID, two.process.pid, os.WCONTINUED)
        os.waitid(os.P_PID, one.process.pid, os.WSTOPPED)
        assert httpx.get(two.spec.url, trust_env=False).text == "from two"
    # A sleeping server is stopped all the same.
    assert one.process.returncode is not None


@needs_proc
def test_idle_servers_that_burn_nothing_are_left_awake(tmp_path: Path) -> None:
    with small_server("one", tmp_path) as one, small_server("two", tmp_path) as two:
        one.wait_ready(60, quiet())
        two.wait_ready(60, quiet())
        one.idle_share, two.idle_share = 0.0, 0.5
        SleepingStage([one, two], Sleep.AUTO).enter("two")
        assert httpx.get(one.spec.url, trust_env=False).text == "from one"
        SleepingStage([one, two], Sleep.AUTO).enter("one")
        os.waitid(os.P_PID, two.process.pid, os.WSTOPPED)


@needs_proc
def test_work_out_of_turn_is_noted(tmp_path: Path) -> None:
    with small_server("one", tmp_path) as one, small_server("two", tmp_path) as two:
        one.wait_ready(60, quiet())
        two.wait_ready(60, quiet())
        stage = SleepingStage([one, two], Sleep.NEVER)
        stage.enter("one")
        before = cpu_seconds(two.process.pid)
        while cpu_seconds(two.process.pid) <= before:
            httpx.get(two.spec.url, trust_env=False)
        stage.leave()
        assert stage.disturbance["two"] > 0
        assert stage.disturbance["one"] == 0


@needs_proc
def test_what_a_group_uses_is_read_from_the_system(tmp_path: Path) -> None:
    with small_server("one", tmp_path) as server:
        server.wait_ready(60, quiet())
        group = server.process.pid
        assert group_members(group) == [group]
        assert cpu_seconds(group) > 0
        assert 1 < memory_mib(group) < 1000
    assert group_members(group) == []
