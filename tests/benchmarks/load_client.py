"""How much the load test's client can take: streamed tokens a second on one core, and how late its requests leave.

Run as `python tests/benchmarks/load_client.py [--rounds N] [--out FILE] [--without-server]`, or by `make bench-client`,
on a machine with nothing else to do. The client gets one core and what it asks another. `source` is a process that only
writes prepared events to sockets, as fast as it can, so that the client's own ceiling shows; `steps` is the same at
PACE tokens a second, all streams at once as an engine's steps give them, so that no two events of a stream come
together; `server` is Livery's whole server over an engine that costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from livery import __version__
from livery.bench.http.measured import Cores, measured_server
from livery.models import DEMO_MODEL
from livery_loadtest.bars import COLOURS, Bar, Verdict
from livery_loadtest.dialect import Dialect
from livery_loadtest.measures import Spread, over_rounds
from livery_loadtest.options import Options
from livery_loadtest.origin import Origin, as_json, document, write_json
from livery_loadtest.precise import new_loop
from livery_loadtest.record import Run
from livery_loadtest.report.words import number
from livery_loadtest.script import Planned, Script
from livery_loadtest.target import Target
from loadtest.driving import drive

TOKENS_A_SECOND = Bar(20_000, 40_000)
SEND_DELAY_P99_MS = Bar(5.0, 1.0, lower=True)
MODEL = "base"
TOKENS = 128  # per answer
RATE = 200.0  # requests a second of the open loop
OPEN_S = 5.0
REQUESTS = 512  # of a closed loop
STREAMS = (1, 16, 64, 256)
PACE = 20_000  # tokens a second of all streams together
PACKAGES = ("httptools", "msgspec")


@dataclass(frozen=True, slots=True)
class Closed:
    """Tokens streamed to `streams` streams at once. `per_cpu_second` is what the client would do on a core of its own
    if the other side never kept it waiting."""

    against: str
    streams: int
    per_second: float
    per_cpu_second: float
    cpu_share: float
    loop_lag_p99_ms: float
    failed: int


@dataclass(frozen=True, slots=True)
class Open:
    """How late requests left at RATE requests a second, of `tokens` tokens each; milliseconds."""

    against: str
    tokens: int
    p50_ms: float
    p99_ms: float
    most_ms: float
    cpu_share: float
    failed: int


# --- a server that only writes ---


def serve_events(port_to: int, pace: float, core: int | None) -> None:
    """Answer every request with its number of prepared events, one write each, all connections in turn; never returns.

    `pace` is the most tokens a second of all of them; 0: as many as there can be.
    """
    if core is not None:
        os.sched_setaffinity(0, {core})
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    os.write(port_to, f"{listening.getsockname()[1]}\n".encode())
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    event = _event(_chunk(" word"))
    closing = _event(_chunk("", "length")) + _as_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    waiting = selectors.DefaultSelector()
    waiting.register(listening, selectors.EVENT_READ)
    under_way: dict[socket.socket, Iterator[bytes]] = {}
    due = 0.0
    while True:
        for key, _ in waiting.select(0 if under_way else None):
            if key.fileobj is listening:
                connection, _ = listening.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                waiting.register(connection, selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket):
                if asked := re.search(rb'"max_tokens":(\d+)', key.fileobj.recv(1 << 16)):
                    tokens = int(asked.group(1))
                    under_way[key.fileobj] = iter([head + event, *[event] * (tokens - 1), closing])
                else:
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()
        if pace:
            while time.perf_counter() < due:
                pass
            due = max(due, time.perf_counter() - 0.01) + len(under_way) / pace
        for connection, left in list(under_way.items()):
            data = next(left, None)
            if data is None:
                del under_way[connection]
            else:
                connection.sendall(data)


def _chunk(text: str, reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1790000000, "model": MODEL}
    return {**head, "system_fingerprint": "livery-0", "choices": [choice]}


def _event(payload: object) -> bytes:
    return _as_chunk(b"data: " + msgspec.json.encode(payload) + b"\n\n")


def _as_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextmanager
def source(pace: float, core: int | None) -> Iterator[str]:
    """The URL of a running source."""
    reading, writing = os.pipe()
    command = [sys.executable, __file__, "--source", str(writing), str(pace), *([] if core is None else [str(core)])]
    with subprocess.Popen(command, pass_fds=[writing]) as process:
        try:
            with os.fdopen(reading) as told:
                os.close(writing)
                yield f"http://127.0.0.1:{int(told.readline())}"
        finally:
            process.kill()


# --- the measurements ---


def closed_loop(against: str, url: str, model: str, streams: int) -> Closed:
    requests = [Planned(index, None, model, "Tell me a story.", TOKENS) for index in range(REQUESTS)]
    run = _driven(Script(requests), url, streams)
    tokens = sum(len(record.events) for record in run.records)
    share = run.health.cpu_share
    lag = run.health.loop_lag_ms[1]
    return Closed(against, streams, tokens / run.seconds, tokens / run.seconds / share, share, lag, _failed(run))


def open_loop(against: str, url: str, model: str, tokens: int) -> Open:
    draw = random.Random(0)
    times = np.cumsum([draw.expovariate(RATE) for _ in range(int(RATE * OPEN_S))])
    requests = [Planned(i, float(at), model, "Tell me a story. " * 50, tokens) for i, at in enumerate(times)]
    run = _driven(Script(requests), url, 0)
    return Open(against, tokens, *run.health.send_delay_ms, run.health.cpu_share, _failed(run))


def _driven(script: Script, url: str, streams: int) -> Run:
    gc.collect()
    gc.freeze()
    options = Options(streams=streams, dialect=Dialect(chat=False))
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(drive(script, Target("measured", url, echoes=False), options))


def _failed(run: Run) -> int:
    return sum(record.error is not None for record in run.records)


# --- what it amounts to ---


@dataclass(frozen=True, slots=True)
class Finding:
    """One number over all rounds, beside its bar."""

    name: str
    unit: str
    value: Spread
    bar: Bar
    verdict: Verdict
    failed: int


def throughputs(rows: Sequence[Closed]) -> list[Finding]:
    """Tokens a second of the client's core, of each closed loop."""
    found = []
    for against, streams in dict.fromkeys((row.against, row.streams) for row in rows):
        some = [row for row in rows if (row.against, row.streams) == (against, streams)]
        name, failed = f"{against}, {streams} streams", sum(row.failed for row in some)
        found.append(_found(name, "tokens/s", [row.per_cpu_second for row in some], TOKENS_A_SECOND, failed))
    return found


def delays(rows: Sequence[Open]) -> list[Finding]:
    """The 99th percentile of how late requests left, of each open loop."""
    found = []
    for against in dict.fromkeys(row.against for row in rows):
        some = [row for row in rows if row.against == against]
        name, failed = f"{against}, {RATE:g} requests/s", sum(row.failed for row in some)
        found.append(_found(name, "ms late at p99", [row.p99_ms for row in some], SEND_DELAY_P99_MS, failed))
    return found


def _found(name: str, unit: str, values: Sequence[float], bar: Bar, failed: int) -> Finding:
    value = over_rounds(values)
    if value is None:
        raise SystemExit("nothing was measured: --rounds takes 1 or more")
    verdict = Verdict.FAIL if failed else bar.verdict(value.median)
    return Finding(name, unit, value, bar, verdict, failed)


def table(findings: Sequence[Finding]) -> Table:
    shown = Table(title="the load test's client, a core of its own; medians over rounds", title_justify="left")
    for heading in ("against", "", "median", "lowest to highest", "bar", ""):
        shown.add_column(heading, justify="right" if heading == "median" else "left")
    for one in findings:
        told = f"[{COLOURS[one.verdict]}]{one.verdict}[/]" + (f", {one.failed} failed" if one.failed else "")
        spread = f"{number(one.value.low)} to {number(one.value.high)}"
        shown.add_row(one.name, one.unit, number(one.value.median), spread, str(one.bar), told)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--without-server", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    origin, console, cores = Origin.here(__version__), Console(stderr=True), Cores.chosen()
    if cores.client is not None:
        os.sched_setaffinity(0, {cores.client})
    closed: list[Closed] = []
    opened: list[Open] = []
    serving = nullcontext() if chosen.without_server else measured_server(DEMO_MODEL, cores.server, console, fake=True)
    with source(0, cores.server) as fast, source(PACE, cores.server) as paced, serving as server:
        against = [("source", fast, MODEL), ("steps", paced, MODEL)]
        if server is not None:
            against.append(("server", server.url, DEMO_MODEL))
        for turn in range(chosen.rounds):
            for name, where, model in against:
                console.print(f"round {turn + 1} of {chosen.rounds}: {name}", highlight=False)
                closed += [closed_loop(name, where, model, streams) for streams in STREAMS]
                opened.append(open_loop(name, where, model, 16))
    bars = {"tokens_per_cpu_second": asdict(TOKENS_A_SECOND), "send_delay_p99_ms": asdict(SEND_DELAY_P99_MS)}
    findings = [*throughputs(closed), *delays(opened)]
    console.print(table(findings))
    measured = {"bars": bars, "findings": findings, "closed": closed, "open": opened}
    report = document("livery-bench-load-client/1", origin, PACKAGES, measured)
    if chosen.out is not None:
        write_json(report, chosen.out)
    else:
        sys.stdout.buffer.write(as_json(report))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--source"]:
        serve_events(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else None)
    else:
        main()
