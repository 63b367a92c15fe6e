"""One tenant asks ten times as much as can be answered: what another one sees of it.

    python tests/chaos/flood.py [--seed N] [--seconds 40] [--times 10]

The quiet tenant sends short requests one after the other, first alone, then beside the flood. The 95th percentile of
its time to first token may grow to twice what it was plus one step, the 95th percentile of the engine's own steps
meanwhile, by its histogram. The flood is Poisson, at a multiple of the requests a second that the server answers when
it is as full as it gets; who still waits at the end goes.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from livery.models import resolve_model
from server.running import livery_serve

QUIET, LOUD = "quiet", "loud"
OPERATOR = "default"  # whose key sees how busy all of it is
PROMPT, ANSWER = 60, 64  # tokens of a request of the flood
OPEN = 256
REFUSED_S = 0.05


@dataclass
class Heard:
    """What one streamed request brought, in seconds."""

    status: int = 0
    first: float = 0.0  # from its sending to its first token
    gaps: list[float] = field(default_factory=list)  # between its tokens


def key_of(tenant: str, data: Path) -> dict[str, str]:
    """The header of a new key of a tenant, made in a data folder that no server has opened yet."""
    role = "admin" if tenant == OPERATOR else "user"
    command = [sys.executable, "-m", "livery", "keys", "create", "--tenant", tenant, "--role", role]
    command += ["--data", str(data), "--json"]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"authorization": f"Bearer {json.loads(made.stdout)['key']}"}


def request(dice: random.Random, prompt: int, answer: int, model: str = "") -> dict[str, object]:
    """A prompt that nobody sent before."""
    ids = [dice.randrange(3, 40_000) for _ in range(prompt)]
    return {"model": model, "prompt": ids, "max_tokens": answer, "ignore_eos": True, "temperature": 0}


async def listen(client: httpx.AsyncClient, body: dict[str, object]) -> Heard:
    heard, last = Heard(), time.monotonic()
    begun = last
    async with client.stream(
        "POST", "/v1/completions", json={**body, "stream": True, "return_token_ids": True}
    ) as answer:
        heard.status = answer.status_code
        async for line in answer.aiter_lines():
            if '"token_ids":[' in line and '"token_ids":[]' not in line:
                now = time.monotonic()
                if heard.first:
                    heard.gaps.append(now - last)
                else:
                    heard.first = now - begun
                last = now
    return heard


async def one_by_one(client: httpx.AsyncClient, dice: random.Random, seconds: float, model: str = "") -> list[Heard]:
    """Short requests with pauses of some tenths of a second between them."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        found.append(await listen(client, request(dice, 40, 4, model)))
        await asyncio.sleep(dice.uniform(0.1, 0.5))
    return found


async def capacity(client: httpx.AsyncClient, dice: random.Random, seconds: float) -> float:
    """Requests a second that are answered when more than can run are there all the time."""
    answered: list[float] = []
    begun = time.monotonic()

    async def keep_asking() -> None:
        while time.monotonic() < begun + seconds:
            await client.post("/v1/completions", json=request(dice, PROMPT, ANSWER))
            answered.append(time.monotonic() - begun)

    await asyncio.gather(*(keep_asking() for _ in range(72)))
    return len(answered) / max(answered)


async def flood(client: httpx.AsyncClient, dice: random.Random, rate: float, seconds: float) -> list[tuple[int, float]]:
    """Statuses and seconds of requests that come when they come."""
    found: list[tuple[int, float]] = []

    async def send() -> None:
        begun = time.monotonic()
        try:
            status = (await client.post("/v1/completions", json=request(dice, PROMPT, ANSWER))).status_code
        except httpx.HTTPError:
            status = 0
        found.append((status, time.monotonic() - begun))

    begun, due, tasks = time.monotonic(), 0.0, []
    while due < seconds:
        await asyncio.sleep(max(0.0, begun + due - time.monotonic()))
        tasks.append(asyncio.create_task(send()))
        due += dice.expovariate(rate)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def steps(client: httpx.AsyncClient) -> dict[float, float]:
    """How many of the engine's steps took at most so many seconds."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    samples = [one for family in families for one in family.samples if one.name == "livery_engine_step_seconds_bucket"]
    return {float(one.labels["le"]): one.value for one in samples}


def step_quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Seconds of a step, between its bucket's bounds as Prometheus's `histogram_quantile` has it."""
    wanted = share * (after[inf] - before[inf])
    low, fewer = 0.0, 0.0
    for bound in sorted(after):
        count = after[bound] - before[bound]
        if count >= wanted and bound < inf:
            return low + (bound - low) * (wanted - fewer) / max(1.0, count - fewer)
        low, fewer = bound, count
    return low


async def watch(client: httpx.AsyncClient, loads: list[int]) -> None:
    while True:
        loads.append((await client.get("/load")).json()["server_load"])
        await asyncio.sleep(0.25)


async def measure(run: common.Run, url: str, keys: dict[str, dict[str, str]], seconds: float, times: float) -> None:
    limits = httpx.Limits(max_connections=4096, max_keepalive_connections=512)
    async with (
        httpx.AsyncClient(base_url=url, timeout=300, limits=limits, headers=keys[LOUD]) as loud,
        httpx.AsyncClient(base_url=url, timeout=300, headers=keys[QUIET]) as quiet,
        httpx.AsyncClient(base_url=url, timeout=300, headers=keys[OPERATOR]) as operator,
    ):
        await one_by_one(quiet, run.dice, 3)
        alone = await one_by_one(quiet, run.dice, seconds / 4)
        rate = await capacity(loud, run.dice, seconds / 2)
        run.say(
            f"{rate:.2f} requests/s of {PROMPT} + {ANSWER} tokens is all it can; the flood sends {times * rate:.1f}"
        )
        loads: list[int] = []
        watching = asyncio.create_task(watch(operator, loads))
        flooding = asyncio.create_task(flood(loud, run.dice, times * rate, seconds))
        await asyncio.sleep(seconds / 8)  # by now it is as full as it gets
        before = await steps(operator)
        beside = await one_by_one(quiet, run.dice, seconds * 3 / 4)
        step = step_quantile(before, await steps(operator), 0.95)
        answers = await flooding
        watching.cancel()
    report(run, alone, beside, step, answers, loads)


def report(
    run: common.Run,
    alone: list[Heard],
    beside: list[Heard],
    step: float,
    answers: list[tuple[int, float]],
    loads: list[int],
) -> None:
    print(f"{'quiet tenant':>14} {'requests':>8} {'TTFT p50':>9} {'p95':>7} {'max':>7} {'gap p50':>9} {'p95':>7}  (ms)")
    for name, heard in (("alone", alone), ("beside it", beside)):
        firsts, gaps = [one.first for one in heard], [gap for one in heard for gap in one.gaps]
        shown = [common.quantile(firsts, q) for q in (0.5, 0.95, 1)] + [common.quantile(gaps, q) for q in (0.5, 0.95)]
        cells = [f"{1000 * seconds:.0f}" for seconds in shown]
        print("{:>14} {:>8} {:>9} {:>7} {:>7} {:>9} {:>7}".format(name, len(heard), *cells))
    statuses = Counter(status for status, _ in answers)
    refused = [seconds for status, seconds in answers if status in (429, 503)]
    run.say(
        f"the flood's answers: {dict(statuses)}; refusals took p50 {1000 * common.quantile(refused, 0.5):.1f} ms, "
        f"p95 {1000 * common.quantile(refused, 0.95):.1f} ms"
    )
    before, after = (common.quantile([one.first for one in heard], 0.95) for heard in (alone, beside))
    run.check(
        f"time to first token at p95: {1000 * after:.0f} ms, at most 2 * {1000 * before:.0f} + {1000 * step:.0f} ms",
        after <= 2 * before + step,
    )
    run.check("all of the quiet tenant's requests were answered", {one.status for one in alone + beside} == {200})
    run.check("what the flood got was an answer or a refusal", set(statuses) <= {200, 429, 503})
    run.check(f"never more than {OPEN} requests were open: {max(loads)}", max(loads) <= OPEN)
    run.check("refusals within 50 ms at p95", common.quantile(refused, 0.95) <= REFUSED_S)


def main() -> int:
    options = common.arguments(__doc__ or "", seconds=40.0, times=10.0)
    run = common.Run("a flood beside a quiet tenant", options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = {tenant: key_of(tenant, folder / "data") for tenant in (QUIET, LOUD, OPERATOR)}
        (folder / "none").mkdir()
        model = resolve_model("smollm2-135m-instruct").path
        with livery_serve(model, folder / "none", folder, "--max-open", str(OPEN)) as server:
            asyncio.run(measure(run, server.url, keys, options.seconds, options.times))
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
