"""Ten times as many requests as can be answered, for a minute: what is accepted is answered, all else refused at once.

    python tests/chaos/overload.py [--seed N] [--seconds 60] [--times 10]

Three tenants, each with a key of its own, send alike. Capacity is measured first, by clients that wait for their
answers (closed loop). The engine leaves a core to the server's own process and to these clients: asking ten times as
much is work too, and a step ends when the slowest of its threads does.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from chaos.flood import OPERATOR, key_of
from livery.models import resolve_model

RUNNING, OPEN = 16, 32
TOKENS = (16, 48)  # of an answer
TENANTS = ("red", "green", "blue")
Keys = Mapping[str, Mapping[str, str]]  # the header of each tenant's key
REFUSED_S, RECOVERY_S, GOODPUT, GROWTH = 0.05, 5.0, 0.9, 1.1


@dataclass(frozen=True)
class Answer:
    tenant: str
    status: int
    sent_s: float
    took_s: float
    tokens: int
    retry_after: bool


async def ask(client: httpx.AsyncClient, keys: Keys, tenant: str, dice: random.Random) -> Answer:
    """Answers differ in length: of one length they would all end, and begin, in the same step of a closed loop."""
    begun = time.monotonic()
    ids = [dice.randrange(3, 40_000) for _ in range(40)]
    body = {"prompt": ids, "max_tokens": dice.randint(*TOKENS), "ignore_eos": True}
    try:
        answer = await client.post("/v1/completions", json=body, headers=keys[tenant])
    except httpx.HTTPError:
        return Answer(tenant, 0, begun, time.monotonic() - begun, 0, False)
    tokens = answer.json()["usage"]["completion_tokens"] if answer.status_code == 200 else 0
    retry = "retry-after" in answer.headers
    return Answer(tenant, answer.status_code, begun, time.monotonic() - begun, tokens, retry)


async def closed_loop(client: httpx.AsyncClient, keys: Keys, dice: random.Random, seconds: float) -> list[Answer]:
    """As many clients as sequences are computed together, each with its next request after its last answer."""
    found: list[Answer] = []
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        while time.monotonic() < end:
            found.append(await ask(client, keys, TENANTS[number % len(TENANTS)], dice))

    await asyncio.gather(*(one(number) for number in range(RUNNING)))
    return found


async def open_loop(
    run: common.Run, client: httpx.AsyncClient, keys: Keys, rate: float, seconds: float
) -> list[Answer]:
    """Requests that come when they come, in a Poisson process."""
    tasks: list[asyncio.Task[Answer]] = []
    begun, due = time.monotonic(), 0.0
    while due < seconds:
        await asyncio.sleep(max(0.0, begun + due - time.monotonic()))
        tasks.append(asyncio.create_task(ask(client, keys, run.dice.choice(TENANTS), run.dice)))
        due += run.dice.expovariate(rate)
    return await asyncio.gather(*tasks)


async def probe(
    url: str, key: Mapping[str, str], pid: int, loads: list[int], sizes: list[float], ready: Counter[int]
) -> None:
    """What the server says of itself meanwhile."""
    async with httpx.AsyncClient(base_url=url, timeout=30, headers=key) as client:
        while True:
            loads.append((await client.get("/load")).json()["server_load"])
            ready[(await client.get("/ready")).status_code] += 1
            sizes.append(common.resident_mb(pid))
            await asyncio.sleep(0.5)


def processors(server: int) -> dict[str, float]:
    """Seconds of processor time so far."""
    pids = {"the engine": common.engine_of(server), "the server": server, "these clients": os.getpid()}
    return {name: common.cpu_s(pid) for name, pid in pids.items()}


def say_busy(run: common.Run, before: dict[str, float], after: dict[str, float], seconds: float) -> None:
    shares = (f"{name} {(after[name] - before[name]) / seconds:.2f}" for name in after)
    run.say(f"  cores in use: {', '.join(shares)}")


async def measure(run: common.Run, url: str, keys: Keys, pid: int, seconds: float, times: float) -> None:
    limits = httpx.Limits(max_connections=4096, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await closed_loop(client, keys, run.dice, 3)
        begun, spent = time.monotonic(), processors(pid)
        answers = await closed_loop(client, keys, run.dice, 20)
        took = time.monotonic() - begun
        say_busy(run, spent, processors(pid), took)
        capacity, base_tokens = len(answers) / took, sum(one.tokens for one in answers) / took
        run.say(f"closed loop, {RUNNING} clients: {capacity:.2f} requests/s, {base_tokens:.1f} tokens/s")
        loads: list[int] = []
        sizes: list[float] = []
        ready: Counter[int] = Counter()
        prober = asyncio.create_task(probe(url, keys[OPERATOR], pid, loads, sizes, ready))
        begun, spent = time.monotonic(), processors(pid)
        answers = await open_loop(run, client, keys, times * capacity, seconds)
        drained = time.monotonic() - begun
        say_busy(run, spent, processors(pid), drained)
        recovering = time.monotonic()
        fresh = await ask(client, keys, TENANTS[0], run.dice)
        recovery = time.monotonic() - recovering
        prober.cancel()
    report(run, answers, base_tokens, drained, loads, sizes)
    run.check(f"/ready was 200 all along: {dict(ready)}", set(ready) == {200})
    run.check(
        f"the next request got {fresh.status} and was answered in {recovery:.2f} s",
        fresh.status == 200 and recovery <= RECOVERY_S,
    )


def report(
    run: common.Run, answers: list[Answer], base_tokens: float, drained: float, loads: list[int], sizes: list[float]
) -> None:
    statuses = Counter(one.status for one in answers)
    run.say(f"open loop: {len(answers)} requests in {drained:.0f} s with draining: {dict(statuses)}")
    for tenant in TENANTS:
        mine = Counter(one.status == 200 for one in answers if one.tenant == tenant)
        run.say(f"  {tenant}: {mine.total()} sent, {mine[True]} answered")
    by_tenant = Counter(one.tenant for one in answers if one.status == 200)
    run.check("each tenant was answered", len(by_tenant) == len(TENANTS))
    refused = [one for one in answers if one.status in (429, 503)]
    late = common.quantile([one.took_s for one in refused], 0.95)
    run.say(f"refused: median {common.quantile([one.took_s for one in refused], 0.5) * 1000:.1f} ms")
    run.check(f"queue: at most {max(loads)} open of {OPEN}", max(loads) <= OPEN)
    run.check(f"refused: 95 % within {late * 1000:.0f} ms", late <= REFUSED_S)
    run.check("refused: all were told when to come again", all(one.retry_after for one in refused))
    run.check("accepted: all were answered", set(statuses) <= {200, 429, 503})
    good = sum(one.tokens for one in answers) / drained
    run.check(
        f"goodput: {good:.1f} tokens/s, {good / base_tokens:.0%} of the closed loop", good >= GOODPUT * base_tokens
    )
    first, last = max(sizes[: len(sizes) // 4]), max(sizes[-len(sizes) // 4 :])
    run.check(f"memory: {first:.0f} MB in the first quarter, {last:.0f} MB in the last", last <= GROWTH * first)


def main() -> int:
    given = common.arguments(__doc__ or "", seconds=60.0, times=10.0, model="smollm2-135m-instruct")
    common.skip_unless_linux("overload.py")
    run = common.Run(f"{given.times:g} times what can be answered", given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = {tenant: key_of(tenant, folder / "server" / "data") for tenant in (*TENANTS, OPERATOR)}
        threads = max(1, len(os.sched_getaffinity(0)) - 1)
        flags = ("--max-running", str(RUNNING), "--max-open", str(OPEN), "--threads", str(threads))
        with common.served(str(resolve_model(given.model).path), folder, *flags) as server:
            asyncio.run(measure(run, server.url, keys, server.pid, given.seconds, given.times))
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
