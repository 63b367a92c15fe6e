"""Requests, loads, replacements and disconnects all at once: never a wrong adapter, never a leaked block.

Every finished answer says by its header which version served it. The text must be what PEFT gives for that very
version, and the version must be one that the name stood for while the request was under way. LIVERY_SOAK_REQUESTS
sets another number of requests.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from peft import LoraConfig
from transformers import AutoTokenizer

from engine.families import LLAMA_LINEAR
from engine.oracle import GAP, Oracle, save_adapter
from livery_adapters.manifest import read_manifest
from server.running import livery_serve, tiny_model
from sizes import SEED, wished

REQUESTS = wished("LIVERY_SOAK_REQUESTS", 500)
STREAMS = 12
REPLACEMENTS = 6
MAX_TOKENS = 10
PROMPTS = [[400 + 7 * i, 900, 31 * i + 5, *range(60, 60 + 3 * i)] for i in range(6)]
NAMES = ["alpha", "beta", "gamma"]


@dataclass
class House:
    """The adapter folder, what each name stood for and when, and what PEFT says."""

    root: Path
    pool: dict[str, Path]  # digest -> a directory with that version
    oracle: Oracle
    tokenizer: object
    stood_for: dict[str, list[str]] = field(default_factory=dict)  # name -> digests put under it, newest last
    confirmed: Counter[str] = field(default_factory=Counter)  # name -> index of the last one known to be served
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: dict[tuple[int, str | None], tuple[str, bool]] = field(default_factory=dict)

    def place(self, name: str, digest: str) -> None:
        """Put a version under a name in one rename, as a careful deployment does."""
        staging = self.root / f".{name}-{digest[:8]}"
        shutil.copytree(self.pool[digest], staging)
        target = self.root / name
        if target.exists():
            target.rename(self.root / f".old-{name}-{len(self.stood_for[name])}")
        staging.rename(target)
        self.stood_for.setdefault(name, []).append(digest)

    def expected(self, prompt: int, digest: str | None) -> tuple[str, bool]:
        """PEFT's greedy text, and whether every choice in it was clear."""
        key = (prompt, digest)
        if key not in self.answers:
            tokens, clear = list(PROMPTS[prompt]), True
            for _ in range(MAX_TOKENS):
                best = self.oracle.logits(tokens, self.pool[digest] if digest else None)[-1].topk(2)
                clear = clear and float(best.values[0] - best.values[1]) > GAP
                tokens.append(int(best.indices[0]))
            text = self.tokenizer.decode(tokens[len(PROMPTS[prompt]) :])  # type: ignore[attr-defined]
            self.answers[key] = (text, clear)
        return self.answers[key]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("soak") / "tiny")


@pytest.fixture(scope="module")
def house(base: Path, tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("soak-adapters")
    pool = {}
    for index in range(8):
        config = LoraConfig(r=2 + index, lora_alpha=8, target_modules=LLAMA_LINEAR[: 2 + index % 6])
        path = save_adapter(base, folder / "pool" / str(index), index, config)
        pool[read_manifest(path).digest] = path
    root = folder / "served"
    root.mkdir()
    house = House(root, pool, Oracle(base, 256), AutoTokenizer.from_pretrained(base))
    for path in pool.values():
        house.oracle.assert_visible(PROMPTS[2], path)
    for name, digest in zip(NAMES, pool, strict=False):
        house.place(name, digest)
    return house


async def test_no_wrong_adapter_and_no_leak(base: Path, house: House, tmp_path: Path) -> None:
    flags = ("--threads", "1", "--kv-memory", "300KiB", "--max-batch-tokens", "24", "--log-level", "warning")
    seed = 11 + SEED
    rng = random.Random(seed)
    with livery_serve(base, house.root, tmp_path, *flags) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            todo = requests(house)
            done = asyncio.Event()
            async with asyncio.TaskGroup() as everything:  # whichever fails ends the others
                everything.create_task(replace_and_load(client, house, random.Random(seed + 1), done))
                async with asyncio.TaskGroup() as streams:
                    for _ in range(STREAMS):
                        streams.create_task(stream(client, house, rng, todo))
                done.set()
            await assert_nothing_left(client)
            for name in NAMES:
                shutil.rmtree(house.root / name)
            await until_nothing_is_held(client, tmp_path / "data")
    print(f"seed {seed}, {REQUESTS} requests: {dict(house.outcomes)}")
    assert house.outcomes["answered"] > REQUESTS / 2, house.outcomes
    assert house.outcomes["disconnected"] > REQUESTS / 20, house.outcomes
    versions = {digest for _, digest in house.answers if digest}
    assert len(versions) > len(NAMES), "replacements never served an answer"


def requests(house: House) -> Iterator[int]:
    """One number per request: so many, and as many more as it takes until enough was replaced beside them."""
    number = 0
    while number < REQUESTS or house.outcomes["replaced"] < REPLACEMENTS:
        yield number
        number += 1


async def stream(client: httpx.AsyncClient, house: House, rng: random.Random, todo: Iterator[int]) -> None:
    for _ in todo:
        await one_request(client, house, rng)


async def one_request(client: httpx.AsyncClient, house: House, rng: random.Random) -> None:
    name = rng.choice(["tiny", *NAMES, "via-api"])
    prompt = rng.randrange(len(PROMPTS))
    leave = rng.random() < 0.2
    oldest = house.confirmed[name]  # nothing older may answer from here on
    body = {
        "model": name,
        "prompt": PROMPTS[prompt],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": leave,
    }
    if leave:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 200:
                async for _ in response.aiter_lines():
                    break
                house.outcomes["disconnected"] += 1
        return
    response = await client.post("/v1/completions", json=body)
    if name == "via-api" and response.status_code in (404, 503):
        assert response.json()["error"]["code"] in ("model_not_found", "adapter_loading"), response.text
        house.outcomes["unloaded"] += 1
        return
    assert response.status_code == 200, response.text
    served_name, _, short = response.headers["x-livery-adapter"].partition("@")
    assert served_name == name
    digest = None
    if name != "tiny":
        admissible = {version for version in house.stood_for[name][oldest:] if version.startswith(short)}
        assert len(admissible) == 1, f"{name} was served by {short}, which it did not stand for"
        (digest,) = admissible
    text, clear = house.expected(prompt, digest)
    if clear:
        assert response.json()["choices"][0]["text"] == text, f"{name}@{short} answered with something else"
        house.outcomes["answered"] += 1
    else:
        house.outcomes["unclear"] += 1


async def replace_and_load(client: httpx.AsyncClient, house: House, rng: random.Random, done: asyncio.Event) -> None:
    """Replace folders, and load and unload by API, until the requests are through."""
    while not done.is_set():
        name = rng.choice(NAMES)
        digest = rng.choice(list(house.pool))
        if digest != house.stood_for[name][-1]:
            house.place(name, digest)
            await until_served(client, name, digest)
            house.confirmed[name] = len(house.stood_for[name]) - 1
            house.outcomes["replaced"] += 1
        source = rng.choice(NAMES)
        house.stood_for.setdefault("via-api", []).append(house.stood_for[source][-1])
        loaded = await client.post("/v1/load_lora_adapter", json={"lora_name": "via-api", "lora_path": source})
        assert loaded.status_code == 200, loaded.text
        assert loaded.text.startswith("Success")
        house.confirmed["via-api"] = len(house.stood_for["via-api"]) - 1
        unloaded = await client.post("/v1/unload_lora_adapter", json={"lora_name": "via-api"})
        assert unloaded.status_code == 200, unloaded.text


async def until_served(client: httpx.AsyncClient, name: str, digest: str) -> None:
    async with asyncio.timeout(60):
        while True:
            card = (await client.get(f"/v1/models/{name}")).json()
            if card["digest"] == digest:
                return


async def until_nothing_is_held(client: httpx.AsyncClient, data: Path) -> None:
    """With no adapter served, none may stay in the engine's memory or among the stored copies."""
    async with asyncio.timeout(60):
        while True:
            served = (await client.get("/v1/adapters")).json()["data"]
            lines = (await client.get("/metrics")).text.splitlines()
            (held,) = [float(line.split()[1]) for line in lines if line.startswith("livery_adapter_memory_bytes ")]
            # os.walk passes over folders that vanish meanwhile, which rglob does not.
            stored = any("adapter_model.safetensors" in files for _, _, files in os.walk(data))
            if not served and not held and not stored:
                return


async def assert_nothing_left(client: httpx.AsyncClient) -> None:
    """Aborts of clients that just left may still be on their way; then everything must be free."""
    async with asyncio.timeout(60):
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            gauges = [line.rpartition(" ") for line in lines if line.startswith("vllm:") and "_bucket" not in line]
            values = {name.partition("{")[0]: float(value) for name, _, value in gauges}
            busy = values["vllm:num_requests_running"] + values["vllm:num_requests_waiting"]
            adapters = (await client.get("/v1/adapters")).json()["data"]
            if busy == 0 and not any(adapter["requests"] for adapter in adapters):
                assert values["vllm:kv_cache_usage_perc"] == 0
                return
