"""What Ray's way costs alone: replicas that compute nothing say pieces of answers at a steady pace.

    make test-ray ONLY=way.py
    RAY_SERVE_ENABLE_HA_PROXY=0 RAY_SERVE_THROUGHPUT_OPTIMIZED=0 make test-ray ONLY=way.py      # Ray by itself

The ingress is Livery's own. Counted is the processor time of all of Ray's processes, beyond what they take with nothing
to do, for each piece that a client gets; one stream wakes everybody for each piece, of many some come together.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import orjson
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from chaos.common import Run, arguments
from livery.scale.ray_app import ROUTER, Ingress
from livery.scale.ray_exchange import Forwarded, Head, Said
from livery_loadtest.servers import free_port
from ray_serve.processes import Taken

PIECE = (
    b'data: {"id":"cmpl-0","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" a"}]}\n\n'
)
STREAM = Head(200, ((b"content-type", b"text/event-stream"),))
IDLE_S = 5.0


class Metronome:
    """Says as many pieces as it is asked for, those of all streams at the same times."""

    async def answer(self, request: Forwarded) -> AsyncGenerator[Said]:
        asked = orjson.loads(request.body)
        every = asked["every_s"]
        yield STREAM
        due = time.monotonic() // every * every
        for _ in range(asked["pieces"]):
            due += every
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield PIECE

    async def record_routing_stats(self) -> dict[str, Any]:
        return {"ids": []}


def main() -> int:
    options = arguments(__doc__ or "", pieces=200, every_ms=20, runs=3)
    settings = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    run = Run(f"Ray's way, {', '.join(f'{name}={os.environ.get(name, 0)}' for name in settings)}", options.seed)
    os.environ["NO_PROXY"] = "*"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    try:
        url = f"http://127.0.0.1:{_deploy()}"
        asyncio.run(_streams(url, 8, 20, 0.02))
        before, begun = Taken.now(), time.perf_counter()
        time.sleep(IDLE_S)
        idle = {name: s / (time.perf_counter() - begun) for name, s in Taken.now().since(before).items()}
        run.say(f"with nothing to do: {100 * sum(idle.values()):.0f} % of a core, not counted below")
        for together in (1, 8):
            _measure(run, url, together, options, idle)
    finally:
        serve.shutdown()
        ray.shutdown()
    return run.finish()


def _deploy() -> int:
    """The port on which it answers."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    router = RequestRouterConfig(request_router_class=ROUTER, request_router_kwargs={"busy_at": 64})
    free: dict[str, Any] = {"max_ongoing_requests": 100, "ray_actor_options": {"num_cpus": 0}}
    replicas = serve.deployment(Metronome).options(**free, request_router_config=router).bind()
    serve.run(serve.deployment(Ingress).options(**free).bind(replicas), route_prefix="/")
    return port


def _measure(run: Run, url: str, together: int, options: Any, idle: dict[str, float]) -> None:
    found: dict[str, list[float]] = {}
    for _ in range(options.runs):
        before, begun = Taken.now(), time.perf_counter()
        asyncio.run(_streams(url, together, options.pieces, options.every_ms / 1e3))
        spent, took = Taken.now().since(before), time.perf_counter() - begun
        for name, seconds in spent.items():
            own = seconds - idle.get(name, 0.0) * took
            found.setdefault(name, []).append(1e6 * own / (together * options.pieces))
    middle = {name: statistics.median(times) for name, times in found.items()}
    parts = ", ".join(f"{name} {us:.0f}" for name, us in sorted(middle.items(), key=lambda one: -one[1]) if us >= 10)
    run.say(f"{together} streams: {sum(middle.values()):.0f} us of CPU a piece ({parts})")


async def _streams(url: str, together: int, pieces: int, every_s: float) -> None:
    body = {"model": "m", "pieces": pieces, "every_s": every_s}

    async def one(http: httpx.AsyncClient) -> None:
        answer = await http.post("/v1/completions", json=body)
        assert answer.content.count(b"data:") == pieces, answer.text[-200:]

    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        await asyncio.gather(*(one(http) for _ in range(together)))


if __name__ == "__main__":
    sys.exit(main())
