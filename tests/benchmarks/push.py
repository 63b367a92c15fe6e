"""How soon new weights serve: adapters of 10 MB pushed to the demo base while four rollouts run.

    python tests/benchmarks/push.py --pushes 100 --out bench-push.json

Before each push a request for the version that is active is timed to its first token (warm), and one more as soon as
the push is acknowledged, which the new version answers: its fingerprint says so. Both are streamed, of a prompt of
their own and the same length, beside the same rollouts, which go on all the time. The bar: 100 ms more than warm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from livery import __version__
from livery.models import DEMO_MODEL, resolve_model
from livery_loadtest.origin import Origin, document, write_json
from server.running import livery_serve

BAR_MS = 100.0
RANK = 8  # over all linear modules of the demo base: 9.8 MB in fp32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RAW = {"content-type": "application/octet-stream"}
PROMPT_TOKENS, ROLLOUT_TOKENS = 24, 96
NAME = "policy"
say = Console(stderr=True).print


def first_version(folder: Path) -> Path:
    """An adapter that PEFT saved, with small random weights in both halves of each pair."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(resolve_model(DEMO_MODEL).path, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=RANK, target_modules=TARGETS, init_lora_weights=False))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.01)
    model.save_pretrained(folder)
    return folder


class Bench:
    """One run on one server."""

    def __init__(self, client: httpx.AsyncClient, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._weights = load_file(folder / WEIGHTS)
        self._asked = 0
        self.rollouts = self.rollout_tokens = 0

    async def upload(self) -> None:
        files = {name: (name, (self._folder / name).read_bytes()) for name in (CONFIG, WEIGHTS)}
        (await self._client.post(f"/v1/adapters/{NAME}/versions", files=files)).raise_for_status()

    async def roll_out(self) -> None:
        """Rollouts one after the other, for as long as nobody cancels them."""
        while True:
            self.rollouts += 1
            async for _ in self._stream(ROLLOUT_TOKENS):
                self.rollout_tokens += 1

    async def measure(self, number: int) -> dict[str, Any]:
        """One push, in milliseconds: a warm first token, the push and its stages, the first token behind it."""
        weights = {name: weight + 1e-4 * (number + 1) for name, weight in self._weights.items()}
        body = await asyncio.to_thread(save, weights)
        _, warm = await self._first_token()
        began = time.perf_counter()
        answer = await self._client.post(f"/v1/adapters/{NAME}/versions", params={"keep": 2}, content=body, headers=RAW)
        push = 1e3 * (time.perf_counter() - began)
        answer.raise_for_status()
        new = answer.json()["pushed"]
        fingerprint, after = await self._first_token()
        if fingerprint != new["system_fingerprint"]:
            raise SystemExit(f"a request behind the push was answered by {fingerprint}")
        stages = {stage: 1e3 * seconds for stage, seconds in new["seconds"].items()}
        stages["rest"] = push - sum(stages.values())  # the way there and back, and what the answer tells
        return {"warm_ms": warm, "push_ms": push, "after_ms": after, "bytes": len(body), "stages_ms": stages}

    async def _first_token(self) -> tuple[str, float]:
        began, told = time.perf_counter(), []
        async for event in self._stream(1):
            told.append((event["system_fingerprint"], 1e3 * (time.perf_counter() - began)))
        return told[0]

    async def _stream(self, tokens: int) -> Any:
        """Events of an answer to a prompt that nobody had before."""
        self._asked += 1
        prompt = [1000 + self._asked % 20000, 500 + self._asked // 20000, *range(3000, 3000 + PROMPT_TOKENS - 2)]
        body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))


async def run(url: str, folder: Path, pushes: int, rollouts: int, pause_s: float) -> dict[str, Any]:
    limits = httpx.Limits(max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        bench = Bench(client, folder)
        await bench.upload()
        running = [asyncio.create_task(bench.roll_out()) for _ in range(rollouts)]
        await bench.measure(0)  # once for nothing: threads and connections are made
        rows, began, tokens = [], time.perf_counter(), bench.rollout_tokens
        for number in range(1, pushes + 1):
            await asyncio.sleep(pause_s)
            rows.append(await bench.measure(number))
            if failed := [task for task in running if task.done()]:
                failed[0].result()
            if number % 10 == 0:
                last = {name: round(rows[-1][name], 1) for name in ("warm_ms", "after_ms", "push_ms")}
                say(f"{number}/{pushes}", last)
        took = time.perf_counter() - began
        for task in running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    speed = (bench.rollout_tokens - tokens) / took
    return {"rows": rows, "rollout_tokens_per_s": speed, "pushes_per_s": pushes / took}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds. `beyond` is how much later the first token behind a push comes than a warm one: of the quantiles,
    and of each push by itself.
    """
    rows = found["rows"]
    told = {name: quantiles([row[name] for row in rows]) for name in ("warm_ms", "after_ms", "push_ms")}
    beyond = {which: told["after_ms"][which] - told["warm_ms"][which] for which in ("median", "p99")}
    stages = {stage: quantiles([row["stages_ms"][stage] for row in rows]) for stage in rows[0]["stages_ms"]}
    pairs = quantiles([row["after_ms"] - row["warm_ms"] for row in rows])
    return {**told, "beyond_ms": beyond, "beyond_by_pair_ms": pairs, "stages_ms": stages, "bar_ms": BAR_MS}


def table(told: dict[str, Any]) -> Table:
    shown = Table("", "median, ms", "p99, ms")
    for name in ("warm_ms", "after_ms", "beyond_ms", "beyond_by_pair_ms", "push_ms"):
        shown.add_row(name.removesuffix("_ms").replace("_", " "), *(f"{told[name][q]:.1f}" for q in ("median", "p99")))
    for stage, values in told["stages_ms"].items():
        shown.add_row(f"  push: {stage}", f"{values['median']:.1f}", f"{values['p99']:.1f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pushes", type=int, default=100)
    parser.add_argument("--rollouts", type=int, default=4, help="requests that run all the time")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two pushes")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="livery-push-") as name:
        folder = Path(name)
        (folder / "adapters").mkdir()
        adapter = first_version(folder / "first")
        with livery_serve(DEMO_MODEL, folder / "adapters", folder, "--log-level", "warning") as server:
            found = asyncio.run(run(server.url, adapter, chosen.pushes, chosen.rollouts, chosen.pause))
    told = summary(found)
    Console().print(table(told))
    met = all(told["beyond_ms"][which] <= BAR_MS for which in ("median", "p99"))
    say(f"the bar of {BAR_MS:.0f} ms is {'met' if met else 'not met'}")
    say(f"{found['rollout_tokens_per_s']:.0f} tokens/s of rollouts beside {found['pushes_per_s']:.2f} pushes a second")
    if chosen.out:
        measured = {"summary": told, "rollouts": chosen.rollouts, "rank": RANK, **found}
        origin = Origin.here(f"livery {__version__}")
        write_json(document("livery-bench-push/1", origin, ["torch", "peft", "httpx"], measured), chosen.out)


if __name__ == "__main__":
    main()
