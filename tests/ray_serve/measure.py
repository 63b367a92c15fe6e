"""What Ray's way costs and what its routing finds: residency of 100 adapters on two replicas, and time per token.

    make test-ray ONLY="measure.py --out ray.json"

Residency: requests drawn by Zipf 1.0 over 100 adapters, on replicas that have room for a quarter of them each, against
one replica with the room of both, the same requests, the same engine: what no routing could better. At several numbers
of requests at once, as a replica computes eight together and what finds it busy goes to the other one; with four keys
in turn, as what a key calls an adapter is its own affair. Per token:
streams through Ray and to a replica's own port, in turn; CPU time of every process on the way, per token, beyond what
they take with nothing to do.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import cycle
from pathlib import Path

import httpx
import numpy as np
from peft import LoraConfig

from chaos.common import Run, arguments
from engine.oracle import save_adapter
from livery import __version__
from livery.tenancy import TenantStore
from livery_adapters.names import OPERATOR_TENANT
from livery_loadtest.origin import Origin, document, write_json
from ray_serve.cluster import KEY, Deployed, cluster, until
from ray_serve.processes import Taken
from server.running import tiny_model

ADAPTERS = 100
ROOM = 25  # adapters in a replica's memory
HEADERS = {"authorization": f"Bearer {KEY}"}
KEYS = 4  # whose names lead to the same adapters
IDLE_S = 5.0


def main() -> int:
    options = arguments(
        __doc__ or "",
        requests=3000,
        together="4,12,24",
        tokens=200,
        streams=8,
        pairs=5,
        what="residency,tokens",
        out="",
    )
    measured: dict[str, object] = {}
    run = Run("Ray Serve's routing and its way", options.seed)
    count = ADAPTERS if "residency" in options.what else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model(folder / "tiny")
        for seed in range(count):
            config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
            save_adapter(model, folder / "made" / f"a{seed}", seed, config)
        with cluster(folder, model, max_running=8, max_rank=8, keep_versions=1) as deployed:
            deployed.wait_for_replicas(2)
            asyncio.run(_take_in(deployed, folder / "made"))
            run.say(f"{count} adapters are taken in")
            if "tokens" in options.what:
                measured["tokens"] = _per_token(run, deployed, options.tokens, options.streams, options.pairs)
            if "residency" in options.what:
                together = [int(number) for number in options.together.split(",")]
                measured["residency"] = _compare_residency(run, deployed, options.requests, together)
    if options.out:
        packages = ("ray", "torch", "transformers")
        write_json(document("livery-ray/1", Origin.here(__version__), packages, measured), Path(options.out))
    return run.finish()


def _compare_residency(run: Run, deployed: Deployed, requests: int, together: Sequence[int]) -> list[dict[str, float]]:
    """The same requests on one replica with room for twice as many adapters as each of two has; so many at a time."""
    keys = _keys(deployed)
    weights = 1 / np.arange(1, ADAPTERS + 1)
    drawn = np.random.default_rng(run.seed).choice(ADAPTERS, size=requests, p=weights / weights.sum())
    size = _bytes_of_one(deployed, keys)
    found: dict[int, list[float]] = {}
    for replicas, room in ((1, 2 * ROOM), (2, ROOM)):
        deployed.replace(replicas=replicas, adapter_memory=int(size * room), host_adapter_memory=1024)
        asyncio.run(_ask_all(deployed, drawn[: requests // 3], 4, keys))
        found[replicas] = [_hits(deployed, drawn[requests // 3 :], at_once, keys) for at_once in together]
        for at_once, share in zip(together, found[replicas], strict=True):
            run.say(f"{replicas} replicas, each with room for {room}, {at_once} requests at once: hits {share:.3f}")
    rows = []
    for at_once, one, two in zip(together, found[1], found[2], strict=True):
        run.check(
            f"{at_once} at once: residency is {two / one:.3f} of what one replica with the room of both finds",
            two / one >= 0.9,
        )
        rows.append({"together": at_once, "one_replica": one, "two_replicas": two, "ratio": two / one})
    return rows


def _hits(deployed: Deployed, drawn: np.ndarray, together: int, keys: Sequence[str]) -> float:
    """The share of these requests that found their adapter in a replica's memory."""
    hits, misses = _residency(deployed)
    asyncio.run(_ask_all(deployed, drawn, together, keys))
    now_hits, now_misses = _residency(deployed)
    return (now_hits - hits) / (now_hits - hits + now_misses - misses)


async def _take_in(deployed: Deployed, made: Path) -> None:
    async with httpx.AsyncClient(base_url=deployed.own_urls[0], headers=HEADERS, timeout=300, trust_env=False) as http:
        for folder in sorted(made.iterdir()):
            names = ("adapter_config.json", "adapter_model.safetensors")
            files = {name: (name, (folder / name).read_bytes()) for name in names}
            answer = await http.post(f"/v1/adapters/{folder.name}/versions", files=files)
            assert answer.status_code in (200, 201), answer.text


def _keys(deployed: Deployed) -> list[str]:
    """New keys of the tenant whose the adapters are."""
    with closing(TenantStore.open(deployed.postgres.url)) as tenants:
        keys = [tenants.create_key(OPERATOR_TENANT, occupied=lambda _: None)[1] for _ in range(KEYS)]

    def known(url: str, key: str) -> bool:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{url}/v1/models", headers=headers, timeout=30, trust_env=False).status_code == 200

    until(lambda: all(known(url, key) for url in deployed.own_urls for key in keys), "the replicas know the keys")
    return keys


async def _ask_all(deployed: Deployed, drawn: np.ndarray, together: int, keys: Sequence[str]) -> None:
    """Ask for these adapters in this order with one key after the other, so many at a time."""
    left = iter(zip(drawn.tolist(), cycle(keys), strict=False))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=deployed.url, timeout=300, trust_env=False) as http:
            for index, key in left:
                body = {"model": f"a{index}", "prompt": [5, 6, 7], "max_tokens": 2, "temperature": 0}
                headers = {"authorization": f"Bearer {key}"}
                answer = await http.post("/v1/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text

    await asyncio.gather(*(client() for _ in range(together)))


def _scraped(deployed: Deployed, metric: str) -> float:
    """The sum of a metric over all replicas and series."""
    total = 0.0
    for url in deployed.own_urls:
        with deployed.http(url) as http:
            for line in http.get("/metrics").text.splitlines():
                if line.startswith(f"{metric}{{") or line.startswith(f"{metric} "):
                    total += float(line.rsplit(" ", 1)[1])
    return total


def _residency(deployed: Deployed) -> tuple[float, float]:
    return _scraped(deployed, "livery_adapter_hits_total"), _scraped(deployed, "livery_adapter_misses_total")


def _bytes_of_one(deployed: Deployed, keys: Sequence[str]) -> float:
    """What an adapter takes of a replica's memory, by asking for two."""
    asyncio.run(_ask_all(deployed, np.arange(ADAPTERS), 1, keys))
    with deployed.http(deployed.own_urls[0]) as http:
        adapters = http.get("/v1/status").json()["memory"]["device"]
    return float(adapters["used_bytes"]) / max(1, int(adapters["adapters"]))


def _per_token(run: Run, deployed: Deployed, tokens: int, streams: int, pairs: int) -> list[dict[str, float]]:
    """The same streams through Ray and to one replica's own port, in turn."""
    ways = {"direct": deployed.own_urls[0], "ray": deployed.url}
    for name, url in ways.items():
        asyncio.run(_streams(url, streams, 8))
        run.say(f"{name} is warm")
    begun, before = time.perf_counter(), Taken.now()
    time.sleep(IDLE_S)
    idle = sum(Taken.now().since(before).values()) / (time.perf_counter() - begun)
    run.say(f"with nothing to do Ray and the replicas take {100 * idle:.0f} % of a core, which is not counted below")
    rows = []
    for together in (1, streams):
        times: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(pairs):
            for name, url in ways.items():
                begun, before = time.perf_counter(), Taken.now()
                took = asyncio.run(_streams(url, together, tokens))
                spent = sum(Taken.now().since(before).values()) - idle * (time.perf_counter() - begun)
                times[name].append(1e3 * took / tokens)
                cpu[name].append(1e6 * spent / (tokens * together))
        for name in ways:
            run.say(
                f"{together} streams, {name}: {statistics.median(times[name]):.2f} ms a token of each, "
                f"{statistics.median(cpu[name]):.0f} us of CPU a token outside engines and client"
            )
        slower = [ray - direct for ray, direct in zip(times["ray"], times["direct"], strict=True)]
        dearer = [ray - direct for ray, direct in zip(cpu["ray"], cpu["direct"], strict=True)]
        run.say(
            f"{together} streams: Ray's way costs {statistics.median(slower):+.2f} ms and "
            f"{statistics.median(dearer):+.0f} us of CPU a token"
        )
        more = {"more_ms_a_token": statistics.median(slower), "more_cpu_us_a_token": statistics.median(dearer)}
        rows.append({"streams": float(together), **more})
    return rows


async def _streams(url: str, count: int, tokens: int) -> float:
    """Seconds from the first to the last byte of so many streams together."""
    body = {"model": "a0", "prompt": [5, 6, 7], "max_tokens": tokens, "ignore_eos": True, "stream": True}

    async def one(http: httpx.AsyncClient) -> float:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            begun = 0.0
            async for _ in answer.aiter_raw():
                begun = begun or time.perf_counter()
            return time.perf_counter() - begun

    async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=300, trust_env=False) as http:
        return statistics.fmean(await asyncio.gather(*(one(http) for _ in range(count))))


if __name__ == "__main__":
    sys.exit(main())
