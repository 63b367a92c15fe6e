"""The engine's process is killed, stopped and broken under 16 streams: what its clients see, and when.

    python tests/chaos/engine_kill.py [--seed N] [--streams 16] [--rounds 0]

Every open request gets an error within 5 s, `/ready` says no within 2 s, and the server answers as before once it is
back. With `--rounds N` the engine is killed N more times, and nothing may be left of those before.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from engine.faults import cause, faulty
from livery.models import resolve_model

ERROR_S, UNREADY_S, BACK_S = 5.0, 2.0, 120.0
PROMPT = "Once upon a time"


@dataclass
class Stream:
    """What one client saw: when its first token came, when it ended and how."""

    first_s: float = 0.0
    ended_s: float = 0.0
    end: str = ""


async def stream(client: httpx.AsyncClient, seen: Stream, begun: asyncio.Semaphore) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1500, "stream": True, "ignore_eos": True}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and not seen.first_s:
                seen.first_s = time.monotonic()
                begun.release()
            if '"error"' in line or line == "data: [DONE]":
                seen.end = line
    seen.ended_s = time.monotonic()


async def probe(client: httpx.AsyncClient, changes: list[tuple[float, int]]) -> None:
    """Note each change of what /ready says."""
    while True:
        status = (await client.get("/ready")).status_code
        if not changes or changes[-1][1] != status:
            changes.append((time.monotonic(), status))
        await asyncio.sleep(0.05)


async def round_of(run: common.Run, url: str, pid: int, fault: str, faults: Path, streams: int) -> None:
    """One fault under load."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        begun = asyncio.Semaphore(0)
        seen = [Stream() for _ in range(streams)]
        tasks = [asyncio.create_task(stream(client, one, begun)) for one in seen]
        for _ in seen:
            await begun.acquire()
        # Of the same length as the others: the engine knows such steps.
        whole = asyncio.create_task(client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 1500}))
        changes: list[tuple[float, int]] = []
        prober = asyncio.create_task(probe(client, changes))
        while not changes:
            await asyncio.sleep(0.01)
        await asyncio.sleep(2)  # some steps later
        at = time.monotonic()
        engine = common.engine_of(pid)
        if fault in ("kill", "stop"):
            os.kill(engine, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        else:
            cause(faults, fault)  # type: ignore[arg-type]
        run.say(f"{fault}: the engine, process {engine}, under {streams} streams and a request that isn't streamed")
        await asyncio.gather(*tasks, return_exceptions=True)
        answer = await whole
        async with asyncio.timeout(BACK_S):
            while changes[-1][1] != 200 or len(changes) < 3:
                await asyncio.sleep(0.05)
        prober.cancel()
        after = await client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 4})
    late = sorted(one.ended_s - at for one in seen)
    run.say(f"{fault}: errors after {late[0]:.2f} to {late[-1]:.2f} s")
    for when, status in changes[1:]:
        run.say(f"{fault}: /ready {status} after {when - at:.2f} s")
    run.check(f"{fault}: every stream ended within {ERROR_S:.0f} s", late[-1] <= ERROR_S)
    told = sum('"engine_restarting"' in one.end for one in seen)
    run.check(f"{fault}: {told} of {streams} streams ended with engine_restarting, none with [DONE]", told == streams)
    run.check(
        f"{fault}: what wasn't streamed got {answer.status_code}, retry-after {answer.headers.get('retry-after')}",
        answer.status_code == 503 and answer.headers.get("retry-after", "").isdigit(),
    )
    run.check(f"{fault}: /ready was false within {UNREADY_S:.0f} s", changes[1][0] - at <= UNREADY_S + 0.2)
    run.check(f"{fault}: the next request got {after.status_code}", after.status_code == 200)


def main() -> int:
    given = common.arguments(__doc__ or "", streams=16, rounds=0, model="smollm2-135m-instruct")
    common.skip_unless_linux("engine_kill.py")
    run = common.Run("the engine is lost under load", given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ("--engine-restarts", str(given.rounds + 10), "--max-model-len", "2048")
        environ = faulty(folder / "faults")
        with common.served(str(resolve_model(given.model).path), folder, *flags, environ=environ) as server:
            httpx.post(f"{server.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 40}, timeout=120)
            for fault in ("kill", "stop", "spin", "lock", "device"):
                asyncio.run(round_of(run, server.url, server.pid, fault, folder / "faults", given.streams))
            leak_rounds(run, server.url, server.pid, given.rounds)
    return run.finish()


def leak_rounds(run: common.Run, url: str, pid: int, rounds: int) -> None:
    """Kill it again and again; what the server holds must not grow."""
    before = common.descriptors(pid), len(common.children(pid)), _folders()
    for number in range(rounds):
        os.kill(common.engine_of(pid), signal.SIGKILL)
        common.until(lambda: httpx.get(f"{url}/ready", timeout=10).status_code != 200, 10)
        back = common.until(lambda: httpx.get(f"{url}/ready", timeout=10).status_code == 200, BACK_S)
        run.say(f"kill {number + 1} of {rounds}: back after {back or 0:.1f} s")
    after = common.descriptors(pid), len(common.children(pid)), _folders()
    if rounds:
        run.say(f"descriptors, processes, folders: {before} before, {after} after {rounds} restarts")
        run.check("nothing is left of engines that were lost", after[0] <= before[0] + 2 and after[1:] == before[1:])


def _folders() -> int:
    return len(list(Path(tempfile.gettempdir()).glob("livery-*")))


if __name__ == "__main__":
    sys.exit(main())
