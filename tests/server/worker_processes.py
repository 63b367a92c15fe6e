"""A server of two API workers, and how to have one of them answer: the others are stopped meanwhile.

Connections wait in the socket that all of them share. The servers where that is done don't take who is stopped for one
that hangs (STOPPABLE).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx

from chaos.common import PROC
from cli.processes import serving

PATIENCE_S = 60.0
STOPPABLE = ("--hang-timeout", "600")
PROMPT = [3, 4]
LONG = 200  # tokens of an answer that goes on until its test ends it
T = TypeVar("T")
Connect = Callable[[], httpx.Client]


class Workers:
    """Where `connect` leads to. No connection is kept: each request may reach either worker."""

    def __init__(self, process: subprocess.Popen[str], connect: Connect, folder: Path, key: str = "none") -> None:
        self.process, self.connect, self.data, self.log = process, connect, folder / "data", folder / "server.log"
        self.operator = key

    def call(self, method: str, path: str, key: str = "", **more: Any) -> httpx.Response:
        with self.connect() as client:
            return client.request(method, path, headers=self.headers(key), timeout=PATIENCE_S, **more)

    def headers(self, key: str = "") -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.operator}"}

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", "/v1/status").json()
        return found

    @property
    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.status()["server"]["workers"]
        return found

    @property
    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.workers]

    def series(self) -> dict[str, float]:
        text = self.call("GET", "/metrics").text
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name.partition("{")[0] if "vllm:" in name else name: float(value) for name, _, value in lines}

    def ask(self, model: str = "", key: str = "", **more: Any) -> httpx.Response:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "ignore_eos": True, **more}
        return self.call("POST", "/v1/completions", key, json=body)

    def stream(self, pid: int, model: str = "", key: str = "", **more: Any) -> Stream:
        """An answer of this worker's, of which the first token has come."""
        with only(pid, *self.pids):
            return Stream(self.connect(), self.headers(key), {"model": model, "max_tokens": LONG, **more})

    @contextmanager
    def at(self, pid: int, connect: Connect | None = None) -> Iterator[httpx.Client]:
        """A client whose connection this worker has accepted, while all of them run."""
        with (connect or self.connect)() as client:
            with only(pid, *self.pids):
                client.get("/health")
            yield client


class Stepped(Workers):
    """Over an engine that computes a token for each letter that it is given."""

    admin: Connect

    def compute(self, tokens: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("." * tokens)
        self.process.stdin.flush()

    def meanwhile(self, work: Callable[[], T]) -> T:
        """Have the engine compute for as long as this takes."""
        with ThreadPoolExecutor(1) as beside:
            done = beside.submit(work)
            while not done.done():
                self.compute(1)
                wait([done], timeout=0.02)
            return done.result()

    def ask(self, model: str = "", key: str = "", **more: Any) -> httpx.Response:
        return self.meanwhile(lambda: super(Stepped, self).ask(model, key, max_tokens=1, **more))

    def refused(self, model: str = "", key: str = "") -> tuple[int, str]:
        """The status and the code that a request gets which isn't let in: nothing is computed for it."""
        return refusal(super().ask(model, key, max_tokens=1))

    def stream(self, pid: int, model: str = "", key: str = "", **more: Any) -> Stream:
        return self.meanwhile(lambda: super(Stepped, self).stream(pid, model, key, **more))

    def managed(self, method: str, path: str, pid: int, **body: Any) -> dict[str, Any]:
        """What the admin API answers, where this worker has the connection."""
        with self.at(pid, self.admin) as client:
            answer = client.request(method, f"/admin/v1{path}", timeout=PATIENCE_S, json=body or None)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def key(self, tenant: str, **limits: int) -> tuple[str, str]:
        """The id of a new key, and the key."""
        made = self.managed("POST", "/keys", self.pids[0], tenant=tenant, limits=limits)
        return made["id"], made["key"]


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Its status and code."""
    return answer.status_code, answer.json()["error"]["code"]


@contextmanager
def two_workers(
    folder: Path, *flags: str, connect: Callable[[str], Connect], admin: Callable[[str], Connect]
) -> Iterator[Stepped]:
    """Two that can be stopped. `connect` and `admin` make what connects of what the server printed."""
    (folder / "adapters").mkdir(exist_ok=True)
    given = ("--api-workers", "2", "--api-key", "secret", "--admin-key", "root", "--log-level", "error", *flags)
    with serving(folder / "adapters", folder / "data", *given, FAKE_STEPPED="1") as (process, printed):
        assert "Ctrl-C" in printed, process.stderr.read() if process.stderr else ""
        made = Stepped(process, connect(printed), folder, "secret")
        made.admin = admin(printed)
        yield made


class Stream:
    """An answer that is read as it comes. `tokens` is how many the server said there were until now."""

    def __init__(self, client: httpx.Client, headers: dict[str, str], asked: dict[str, Any]) -> None:
        body = {
            **asked,
            "prompt": PROMPT,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        request = client.build_request("POST", "/v1/completions", json=body, headers=headers, timeout=PATIENCE_S)
        self._client, self.answer = client, client.send(request, stream=True)
        assert self.answer.status_code == 200, self.answer.read()
        self._lines = self.answer.iter_lines()
        self.tokens, self.last = 0, ""

    def reach(self, tokens: int) -> None:
        """Read until so many have come."""
        while self.tokens < tokens:
            assert self._read(), f"the stream ended at {self.tokens} of {tokens} tokens: {self.last}"

    def rest(self) -> str:
        """Read to the end; the last that was said. Raises httpx.TransportError where the connection breaks."""
        with closing(self._client):
            while self._read():
                pass
        return self.last

    def _read(self) -> bool:
        """The next event, False at the end."""
        for line in self._lines:
            if line.startswith("data: "):
                self.last = line.removeprefix("data: ")
                said = json.loads(self.last) if self.last.startswith("{") else {}
                self.tokens = (said.get("usage") or {}).get("completion_tokens", self.tokens)
                return True
        return False


@contextmanager
def only(pid: int, *others: int) -> Iterator[None]:
    """Nobody but this worker runs: it answers whoever comes."""
    stopped = [other for other in others if other != pid]
    for other in stopped:
        stop(other)
    try:
        yield
    finally:
        for other in stopped:
            with suppress(ProcessLookupError):  # it was ended as one that hangs
                os.kill(other, signal.SIGCONT)


def stop(pid: int) -> None:
    assert pid > 0, "there is such a worker"
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T", "it is stopped")


def state_of(pid: int) -> str:
    """As in /proc; "" for a process that is gone or as good as that."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0].replace("Z", "")
    except OSError:
        return ""


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.02)
