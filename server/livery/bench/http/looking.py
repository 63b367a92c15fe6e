"""What those who look on cost: scrapes, and the console's poll, with thousands of adapters in use."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec
import numpy as np
from safetensors.numpy import save

from livery.bench.http.measured import MeasuredServer
from livery.bench.http.pinging import pinged
from livery.bench.http.server import HIDDEN, MODULES
from livery_adapters.registry import Registry, VersionFacts
from livery_loadtest.bars import Bar
from livery_loadtest.measures import Spread, over_rounds

SCRAPE_MS = Bar(200, 100, lower=True)
POLL_MS = Bar(20, 10, lower=True)  # of the server's time
RANK = 2
TEAMS = 20  # that names are spread over


@dataclass(frozen=True, slots=True)
class LookRow:
    """One kind of looking. Milliseconds: what a client waited, the server's processor time for one, and the longest
    that others waited for the answer to a ping meanwhile. `size`: bytes of an answer.
    """

    name: str
    adapters: int
    took_ms: Spread
    server_ms: float
    worst_ms: float
    size: int
    bar: Bar
    judged_ms: float


def first_of(server: MeasuredServer) -> VersionFacts:
    """The first of its adapters, which was asked once."""
    rows = {"A": np.ones((RANK, HIDDEN), np.float32), "B": np.ones((HIDDEN, RANK), np.float32)}
    weights = {f"base_model.model.{path}.lora_{one}.weight": rows[one] for path in MODULES for one in rows}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    config["target_modules"] = sorted({path.rpartition(".")[2] for path in MODULES})
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(weights)}
    name = _name(0)
    httpx.post(f"{server.url}/v1/adapters/{name}/versions", files=files, timeout=60).raise_for_status()
    _ask(server, [name])
    with closing(Registry.open(server.data.registry_url())) as registry:
        first = registry.get(name).active
    assert first is not None
    return replace(first.facts, profile={})


def stock(server: MeasuredServer, facts: VersionFacts, numbers: range) -> None:
    """More adapters, all over the first one's files, each of which is asked once."""
    names = list(map(_name, numbers))
    with closing(Registry.open(server.data.registry_url())) as registry:
        for name in names:
            registry.put(name, facts, source="api", origin="benchmark", state="ready")
    _ask(server, names)


def _name(number: int) -> str:
    return f"team-{number % TEAMS}/adapter-{number:05}"


def _ask(server: MeasuredServer, names: Sequence[str]) -> None:
    with _connected(server.url) as connection:
        for name in names:
            body = msgspec.json.encode({"model": name, "prompt": [1, 2, 3], "max_tokens": 2})
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            _read(connection)


def scrapes(server: MeasuredServer, count: int, times: int) -> list[LookRow]:
    row = _look(server, "GET /metrics", "/metrics", count, times, SCRAPE_MS)
    return [replace(row, judged_ms=row.took_ms.median)]


def polls(server: MeasuredServer, count: int, times: int) -> list[LookRow]:
    pages = {"GET /v1/status, a page of 15": (15, "tokens"), "GET /v1/status, a page of 1,000": (1000, "ttft_p95_s")}
    return [
        _look(
            server,
            name,
            f"/v1/status?{urlencode({'limit': limit, 'sort': sort, 'order': 'desc'})}",
            count,
            times,
            POLL_MS,
        )
        for name, (limit, sort) in pages.items()
    ]


def _look(server: MeasuredServer, name: str, path: str, count: int, times: int, bar: Bar) -> LookRow:
    """Look so many times, while somebody else sends one ping after the other."""
    took: list[float] = []
    with _connected(server.url) as connection:
        connection.request("GET", path)
        size = len(_read(connection))  # the first one reads what later ones remember
        before = server.cpu_s
        for _ in range(times):
            sent = time.perf_counter()
            connection.request("GET", path)
            _read(connection)
            took.append(1e3 * (time.perf_counter() - sent))
        spent = 1e3 * (server.cpu_s - before) / times
        with pinged(server.url) as waits:
            for _ in range(times):
                connection.request("GET", path)
                _read(connection)
    spread = over_rounds(took)
    assert spread is not None
    return LookRow(name, count, spread, spent, 1e3 * max(waits), size, bar, spent)


@contextmanager
def _connected(url: str) -> Iterator[http.client.HTTPConnection]:
    address = urlsplit(url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def _read(connection: http.client.HTTPConnection) -> bytes:
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise AssertionError(body)
    return body
