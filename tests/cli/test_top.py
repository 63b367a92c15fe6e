"""`livery top` against a live server: one frame for scripts, a screen that goes on, and what it says when it can't."""

from __future__ import annotations

import copy
import io
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator

import httpx
import pytest
from rich.console import Console

from api.conftest import _servers
from api.live_server import LiveServer, Serve, Setup
from api.peft_files import make_adapter
from cli.conftest import Livery
from livery.adapter_views import Json
from livery.adding import AddOptions
from livery.commands.top_view import BLOCKS, frame, sparks
from livery.models import resolve_model
from livery.text import Tokenizer


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    tokenizer = Tokenizer.from_directory(resolve_model("smollm2-135m-instruct").path)
    with _servers(tokenizer, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def busy(started: Serve, tmp_path_factory: pytest.TempPathFactory) -> LiveServer:
    """A server with two adapters, one of which was asked three times."""
    folder = tmp_path_factory.mktemp("busy")
    make_adapter(folder / "adapters" / ".pool" / "one")
    server = started(folder=folder)
    for name in ("idle", "team/busy"):
        server.call(server.management.put(name, ".pool/one", AddOptions()))
    server.call(server.management.pin("team/busy", True))
    for _ in range(3):
        server.client().completions.create(model="team/busy", prompt=[1000, 1001], max_tokens=4)
    return server


def cells(line: str) -> list[str]:
    return line.split()


def test_one_frame_says_it_all(busy: LiveServer, livery: Livery) -> None:
    done = livery("top", "--url", busy.url, "--once")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("Livery base-model")
    assert "0 running, 0 waiting" in done.out
    first, second = lines[-3:-1]
    assert cells(first)[:6] == ["team/busy", "pinned", "●", "device", "LORA", "2"]
    assert cells(first)[9:11] == ["3", "18"]
    assert cells(second)[0] == "idle"
    assert lines[-1].strip() == "by tokens"


def test_a_frame_holds_what_is_searched_for(busy: LiveServer, livery: Livery) -> None:
    done = livery("top", "--url", busy.url, "--once", "--search", "BUSY")
    assert "team/busy" in done.out
    assert "idle" not in done.out


def test_says_where_nobody_answers_and_who_is_not_let_in(started: Serve, livery: Livery) -> None:
    done = livery("top", "--url", "http://127.0.0.1:9", "--once")
    assert (done.code, "http://127.0.0.1:9" in done.err, "livery serve" in done.err) == (1, True, True)
    server = started(Setup(api_key="sk-operator"))
    refused = livery("top", "--url", server.url, "--once")
    assert (refused.code, "API key" in refused.err) == (1, True)
    assert livery("top", "--url", server.url, "--once", "--key", "sk-operator").code == 0


def test_what_a_server_refuses_is_one_line(busy: LiveServer, livery: Livery) -> None:
    slash = livery("top", "--url", f"{busy.url}/v1", "--once")
    assert (slash.code, slash.err.count("\n")) == (1, 1), slash.err
    assert f"Leave out /v1: --url {busy.url}\n" in slash.err
    long = livery("top", "--url", busy.url, "--once", "--search", "x" * 257)
    assert (long.code, long.err.count("\n"), "search" in long.err) == (1, 1, True), long.err
    listed = livery("adapters", "ls", "--url", f"{busy.url}/v1/")
    assert (listed.code, f"--url {busy.url}\n" in listed.err) == (1, True), listed.err


def test_a_tenants_key_sees_what_the_tenant_does_and_is_told_so(started: Serve, livery: Livery) -> None:
    server = started(Setup(api_key="sk-operator"))
    done = livery("top", "--url", server.url, "--once", "--key", server.make_key("acme"))
    assert done.code == 0, done.err
    assert "What tenant acme does" in done.out
    assert "KV cache" not in done.out
    assert "doesn't answer" not in done.out
    whole = livery("top", "--url", server.url, "--once", "--key", "sk-operator").out
    assert ("KV cache" in whole, "What tenant" in whole) == (True, False)


def test_a_frame_tells_what_steps_took_since_the_one_before(busy: LiveServer) -> None:
    before = httpx.get(f"{busy.url}/v1/status", timeout=30).raise_for_status().json()
    found = copy.deepcopy(before)
    assert "no steps" in printed(found, before)
    found["server"]["uptime_s"] += 2
    found["load"]["steps"] += 10
    found["load"]["step_seconds"] += 0.5
    assert "5.0 steps/s, 50 ms a step" in printed(found, before)


def test_columns_go_from_zero_to_the_highest_whatever_a_server_tells() -> None:
    assert sparks([0, 4, 8]) == BLOCKS[0] + BLOCKS[(len(BLOCKS)) // 2] + BLOCKS[-1]
    assert sparks([-130, 10, 0]) == BLOCKS[0] + BLOCKS[-1] + BLOCKS[0]
    assert sparks([-1]) == sparks([0]) == BLOCKS[0]
    assert sparks([]) == ""


def test_markup_in_names_is_text(busy: LiveServer) -> None:
    found = httpx.get(f"{busy.url}/v1/status", timeout=30).raise_for_status().json()
    found["base"]["name"], found["adapters"]["data"][0]["name"] = "[b]base[/b]", "[red]one[/red]"
    found["caller"] |= {"sees": "tenant", "tenant": "[i]acme[/i]"}
    text = printed(found, None)
    assert all(name in text for name in ("[b]base[/b]", "[red]one[/red]", "[i]acme[/i]"))


def printed(found: Json, before: Json | None) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(frame(found, before))
    return console.export_text()


def test_without_a_terminal_it_says_how(busy: LiveServer, livery: Livery) -> None:
    done = livery("top", "--url", busy.url)
    assert (done.code, "--once" in done.err) == (1, True)


def test_a_screen_goes_on_until_ctrl_c_and_leaves_the_terminal_as_it_was(busy: LiveServer) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 140))
    before = termios.tcgetattr(theirs)
    environment = os.environ | {"TERM": "xterm-256color"}
    command = [sys.executable, "-m", "livery", "top", "--url", busy.url, "--interval", "0.2"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        try:
            seen = b""
            while seen.count(b"team/busy") < 3:  # several frames
                seen += os.read(ours, 65536)
            process.send_signal(signal.SIGINT)
            while b"\x1b[?1049l" not in seen:  # the screen that was there before is back
                seen += os.read(ours, 65536)
            assert process.wait(30) == 0
            assert b"Traceback" not in seen
            assert termios.tcgetattr(theirs) == before
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)
