"""What a streamed token costs the processes of a server, with one API worker and with several, in turn:

    python tests/benchmarks/api_workers.py --workers 1,2 --repeats 5 --out api-workers.json

Processor time of each process (of all its threads, as the system counts it) over the tokens that clients received
meanwhile, by the answers' own usage: of the process that has the engine's other end, of each worker, of the engine.
How many more tokens a second more workers give can only be seen where cores are free for them and for the client; what
each token costs is seen anywhere. The model is random and tiny and the answers greedy, so that the engine is no
bottleneck; its cost is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from livery import __version__
from livery_loadtest.origin import Origin, document, write_json
from server.running import RunningServer, livery_serve, tiny_model

say = Console(stderr=True).print
PROMPT = list(range(5, 25))


def processor_s(pid: int) -> float:
    """Seconds that all threads of a process ran so far, those that have ended included."""
    fields = (common.PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    ended = (int(fields[11]) + int(fields[12])) / 100  # in ticks: a floor beside the exact times of threads
    threads = (common.PROC / str(pid) / "task").iterdir()
    return max(ended, sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9)


def processes(server: RunningServer) -> dict[str, int]:
    """Process ids by what they do."""
    workers = httpx.get(f"{server.url}/v1/status", timeout=30).json()["server"].get("workers", [])
    found = {f"worker {worker['number']}": worker["pid"] for worker in workers}
    return {"parent" if workers else "server": server.pid, **found, "engine": common.engine_of(server.pid)}


async def stream(host: str, port: int, tokens: int) -> tuple[int, int]:
    """The tokens of one answer and the events that brought them, on a connection of its own."""
    asked = {"model": "", "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    body = json.dumps(asked | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
    answer = await reader.read()
    while more := await reader.read(1 << 16):
        answer += more
    writer.close()
    if b"data: [DONE]" not in answer:
        raise SystemExit(f"a stream ended early: {answer[-300:]!r}")
    told = re.findall(rb'"completion_tokens": ?(\d+)', answer)
    if not told or int(told[-1]) != tokens:
        raise SystemExit(f"{tokens} tokens were asked for, and the answer's usage tells {told[-1:]}")
    return tokens, answer.count(b"data: {") - 1  # the last one has the usage


async def load(url: str, streams: int, tokens: int) -> tuple[int, int]:
    """Tokens and events of so many streams side by side."""
    where = httpx.URL(url)
    found = await asyncio.gather(*(stream(where.host, where.port or 80, tokens) for _ in range(streams)))
    return sum(one for one, _ in found), sum(events for _, events in found)


def measured(model: Path, workers: int, streams: int, tokens: int) -> dict[str, Any]:
    """One server, one load: microseconds of processor time per token and process, and tokens a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "adapters").mkdir()
        flags = ("--api-workers", str(workers), "--threads", "1", "--log-level", "error")
        with livery_serve(model, folder / "adapters", folder, *flags) as server:
            asyncio.run(load(server.url, streams, 8))
            ids = processes(server)
            before, begun = {who: processor_s(pid) for who, pid in ids.items()}, time.perf_counter()
            received, events = asyncio.run(load(server.url, streams, tokens))
            took = time.perf_counter() - begun
            cost = {who: 1e6 * (processor_s(pid) - before[who]) / received for who, pid in ids.items()}
    rate = {"tokens": received, "events": events, "tokens_per_s": received / took}
    return {"workers": workers, **rate, "us_per_token": cost}


def table(rows: list[dict[str, Any]], counts: list[int]) -> Table:
    shown = Table("workers", "process", "µs/token, median", "lowest", "highest")
    for count in counts:
        costs = [row["us_per_token"] for row in rows if row["workers"] == count]
        by_process = {who: [cost[who] for cost in costs] for who in costs[0]}
        by_process["all but the engine"] = [sum(cost.values()) - cost["engine"] for cost in costs]
        for who, found in by_process.items():
            told = statistics.median(found), min(found), max(found)
            shown.add_row(str(count), who, *(f"{one:.1f}" for one in told))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", default="1,2", help="numbers of API workers, in turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    counts = [int(one) for one in chosen.workers.split(",")]
    with tempfile.TemporaryDirectory() as name:
        model = tiny_model(Path(name) / "tiny")
        rows = []
        for repeat in range(chosen.repeats):
            for count in counts:
                rows.append(measured(model, count, chosen.streams, chosen.tokens))
                say(f"{repeat + 1}/{chosen.repeats}", rows[-1])
    Console().print(table(rows, counts))
    if chosen.out is not None:
        origin = Origin.here(__version__)
        write_json(document("livery-bench-api-workers/1", origin, ("pyzmq", "msgspec"), {"rows": rows}), chosen.out)


if __name__ == "__main__":
    main()
