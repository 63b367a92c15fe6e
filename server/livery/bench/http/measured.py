"""A server launched for measuring, and what loads on it amount to."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
from rich.console import Console

from livery.bench.http.server import Found, Setup
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore
from livery_loadtest.lean import Load, post, run_load
from livery_loadtest.servers import LaunchedServer, LaunchSpec, cpu_seconds, free_port

# "limited": requests bring a key that has limits of every kind. "traced": every request goes to a collector.
Variant = Literal["usual", "limited", "traced"]
NAMED: dict[Variant, str] = {"usual": "", "limited": " and limits", "traced": " and traces"}
FAR_LIMITS = {
    name: 1 << 40
    for name in ("requests_per_minute", "tokens_per_minute", "concurrent_requests", "queued_tokens", "max_tokens", "n")
}

START_S = 300.0
FOUND_S = 10.0
PROMPT = "Tell me what there is to see at the harbour in the morning, and whom one meets there."


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core serves and which one asks; one for both, or None each, where there is no choice."""

    server: int | None
    client: int | None

    @classmethod
    def chosen(cls) -> Cores:
        if not hasattr(os, "sched_getaffinity"):
            return cls(None, None)
        first, *others = sorted(os.sched_getaffinity(0))
        return cls(first, others[0] if others else first)


class MeasuredServer:
    """A running server; `cpu_s` of its process group so far."""

    def __init__(self, launched: LaunchedServer, found: Path, data: DataFolder, key: str | None = None) -> None:
        self._launched = launched
        self._found = found
        self.data = data
        self._key = key
        self._on = True
        self.url = launched.spec.url

    @property
    def cpu_s(self) -> float:
        return cpu_seconds(self._launched.process.pid)

    def load(self, streams: int, each: int, tokens: int, *, stream: bool = True, prompt: str = PROMPT) -> Load:
        """Chats of `tokens` tokens, `each` on every one of `streams` connections. Raises LoadFailed."""
        return run_load(self.url, self.chat(tokens, stream=stream, prompt=prompt), streams, each)

    def chat(self, tokens: int, *, stream: bool, prompt: str) -> bytes:
        body: dict[str, object] = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return post(self.url, "/v1/chat/completions", msgspec.json.encode(body), self._key)

    @contextmanager
    def watched(self) -> Iterator[Found]:
        """Measure inside the server as long as this lasts; what was found is filled in at its end."""
        pid, found = self._launched.process.pid, Found()
        os.kill(pid, signal.SIGUSR1)
        yield found
        os.kill(pid, signal.SIGUSR2)
        told = self._told()
        found.samples, found.seconds, found.calls = told.samples, told.seconds, told.calls

    def turned(self, on: bool) -> MeasuredServer:
        """With or without metrics and traces, or without what keeps tenants apart where it is limited; while nothing
        is asked.
        """
        while self._on is not on:
            os.kill(self._launched.process.pid, signal.SIGHUP)
            self._on = self._told().on
        return self

    def _told(self) -> Found:
        latest = time.monotonic() + FOUND_S
        while not self._found.exists():
            if time.monotonic() > latest:
                raise TimeoutError(f"the measured server wrote nothing within {FOUND_S:.0f} s")
            time.sleep(0.01)
        told = msgspec.json.decode(self._found.read_bytes(), type=Found)
        self._found.unlink()
        return told


@contextmanager
def measured_server(
    model: str,
    core: int | None,
    console: Console,
    *,
    fake: bool,
    variant: Variant = "usual",
    collector: str | None = None,
) -> Iterator[MeasuredServer]:
    """Start a server with a data folder of its own and stop it at the end. `collector` takes its traces.

    Raises ServerFailed.
    """
    with TemporaryDirectory(prefix="livery-bench-") as folder:
        found, port, data = Path(folder) / "found.json", free_port(), DataFolder(Path(folder) / "data")
        turns: Literal["metrics", "tenancy"] = "tenancy" if variant == "limited" else "metrics"
        setup = Setup(model, str(data.root), port, str(found), fake, core, turns, collector)
        command = [sys.executable, "-m", "livery.bench.http.server", msgspec.json.encode(setup).decode()]
        name = f"the server with a {'fake' if fake else 'real'} engine{NAMED[variant]}"
        spec = LaunchSpec(name, command, f"http://127.0.0.1:{port}", Path(folder) / "server.log", ready="/ready")
        key = _key(data) if variant == "limited" else None
        with LaunchedServer(spec) as launched:
            launched.wait_ready(START_S, console)
            yield MeasuredServer(launched, found, data, key)


def _key(data: DataFolder) -> str:
    """A key in a new data folder that is limited in every way, and never reaches a limit."""
    data.make()
    store = TenantStore.open(data.tenants_url(None))
    try:
        _, key, _ = store.create_key("bench", limits=FAR_LIMITS, occupied=lambda _: None)
        store.update_tenant("bench", limits=FAR_LIMITS)
        return key
    finally:
        store.close()
