"""Servers that a comparison launches itself: start, wait until they answer, put to sleep, stop.

Each runs in a process group of its own with its output in a file. Knows no benchmark and no particular server.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from rich.console import Console

POLL_SECONDS = 0.5
STOP_SECONDS = 20.0
IDLE_WATCH_SECONDS = 2.0
# More than this share of one core while nobody asks anything would disturb the server being measured.
IDLE_SHARE = 0.02
LOG_LINES_SHOWN = 15
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}  # a log is read line by line, not on a terminal


class ServerFailed(Exception):
    """A launched server ended or never answered; the message has the end of its log."""


class Sleep(StrEnum):
    """Whether idle servers are stopped (SIGSTOP) while another is measured; `auto`: those that burn CPU."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """How to start a server. `url` is its root.

    It is ready when GET `ready` answers 200 and /v1/models lists every name in `expects`. `models` and `fields` are
    as in livery_loadtest.target.Target. `told_by` names the option that arguments of the command came from, if any.
    """

    name: str
    command: Sequence[str]
    url: str
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/health"
    expects: frozenset[str] = frozenset()
    models: tuple[str, ...] = ()
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    told_by: str = ""


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LaunchedServer:
    """One running server; use as a context manager, which stops it whatever happens."""

    def __init__(self, spec: LaunchSpec) -> None:
        self.spec = spec
        self.ready_seconds = 0.0
        self.idle_share = 0.0
        self._asleep = False
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LaunchedServer:
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log.open("wb") as log:
            self._process = subprocess.Popen(
                list(self.spec.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **PLAIN, **self.spec.environment},
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not started"
        return self._process

    def wait_ready(self, timeout: float, console: Console) -> None:
        """Wait until the server is ready, showing the seconds and its log's last line. Raises ServerFailed."""
        begun = time.monotonic()
        # A spinner at full speed would take a tenth of a core from the server that is starting.
        status = console.status(f"starting {self.spec.name}", refresh_per_second=1)
        with status, httpx.Client(timeout=2, trust_env=False) as client:
            while not self._ready(client):
                waited = time.monotonic() - begun
                if self.process.poll() is not None:
                    raise ServerFailed(self._failure(f"ended with code {self.process.returncode}"))
                if waited > timeout:
                    raise ServerFailed(self._failure(f"was not ready within {timeout:.0f} s"))
                last = (self._log_end(1) or [""])[0][:100]
                status.update(f"starting {self.spec.name}, {waited:.0f} s: [dim]{last}[/]")
                time.sleep(POLL_SECONDS)
        self.ready_seconds = time.monotonic() - begun
        console.print(f"{self.spec.name} is ready after {self.ready_seconds:.0f} s")

    def watch_idle(self) -> float:
        """The share of one core the server uses while nobody asks it anything; takes two seconds."""
        before = cpu_seconds(self.process.pid)
        time.sleep(IDLE_WATCH_SECONDS)
        self.idle_share = (cpu_seconds(self.process.pid) - before) / IDLE_WATCH_SECONDS
        return self.idle_share

    def sleep(self) -> None:
        """Stop the whole process group from running; its connections stay open."""
        if not self._asleep:
            os.killpg(self.process.pid, signal.SIGSTOP)
            self._asleep = True

    def wake(self) -> None:
        """Let it run again."""
        if self._asleep:
            os.killpg(self.process.pid, signal.SIGCONT)
            self._asleep = False

    def stop(self) -> None:
        """End the process group: politely, then, after some seconds, at once."""
        if self._process is None:
            return
        self.wake()
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)
                self.process.wait(STOP_SECONDS)
            except ProcessLookupError:
                self.process.wait()
            except subprocess.TimeoutExpired:
                continue

    def _ready(self, client: httpx.Client) -> bool:
        try:
            if client.get(self.spec.url + self.spec.ready).status_code != 200:
                return False
            if not self.spec.expects:
                return True
            listed = client.get(self.spec.url + "/v1/models").json()["data"]
        except (httpx.HTTPError, ValueError, KeyError):
            return False
        return self.spec.expects <= {entry["id"] for entry in listed}

    def _log_end(self, lines: int) -> list[str]:
        with self.spec.log.open("rb") as log:
            log.seek(max(0, self.spec.log.stat().st_size - 8192))
            text = log.read().decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-lines:]

    def _failure(self, what: str) -> str:
        end = "\n  ".join(self._log_end(LOG_LINES_SHOWN))
        told = f" (with the arguments of {self.spec.told_by})" if self.spec.told_by else ""
        return f"{self.spec.name} {what}{told}; the end of {self.spec.log}:\n  {end}"


class SleepingStage:
    """Only the server being measured runs; others sleep where they would use CPU.

    `disturbance` has the CPU seconds each server used while another one was being measured.
    """

    def __init__(self, servers: Sequence[LaunchedServer], policy: Sleep) -> None:
        self._servers = {server.spec.name: server for server in servers}
        self._policy = policy
        self._measured: str | None = None
        self._used = self._cpu_seconds()
        self.disturbance = dict.fromkeys(self._servers, 0.0)

    def enter(self, target: str) -> None:
        """Wake `target`, put to sleep the others the policy names; one that somebody else runs is up anyway."""
        self.leave()
        for name, server in self._servers.items():
            if name != target and self._sleeps(server):
                server.sleep()
        if target in self._servers:
            self._servers[target].wake()
        self._measured, self._used = target, self._cpu_seconds()

    def leave(self) -> None:
        """End the turn of the server being measured: note what the others used meanwhile."""
        if self._measured is None:
            return
        for name, seconds in self._cpu_seconds().items():
            if name != self._measured:
                self.disturbance[name] += seconds - self._used[name]
        self._measured = None

    def _cpu_seconds(self) -> dict[str, float]:
        return {name: cpu_seconds(server.process.pid) for name, server in self._servers.items()}

    def _sleeps(self, server: LaunchedServer) -> bool:
        if self._policy is Sleep.AUTO:
            return server.idle_share > IDLE_SHARE
        return self._policy is Sleep.ALWAYS


def group_members(group: int) -> list[int]:
    """The process ids of a process group; empty where there is no /proc."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we were looking
            continue
        if int(fields[2]) == group:
            members.append(int(stat.parent.name))
    return members


def cpu_seconds(group: int) -> float:
    """CPU time, user and system, that the living members of a process group have used."""
    return sum(process_seconds(pid) for pid in group_members(group))


def process_seconds(pid: int) -> float:
    """CPU time, user and system, that a process has used; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(group: int) -> float:
    """Memory of a process group in MiB, with shared pages counted once (proportional set size)."""
    kib = 0
    for pid in group_members(group):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return kib / 1024
