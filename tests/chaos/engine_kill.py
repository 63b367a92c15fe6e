"""The engine's process is killed, stopped, broken and starved under 16 streams: what its clients see, and when.

    python tests/chaos/engine_kill.py [--seed N] [--streams 16] [--starved 20] [--rounds 0]

Every open request gets an error within 5 s, `/ready` says no within 2 s, and the server answers as before once it is
back. An engine whose core others take is slow and isn't lost: `/ready` says no until it gets on, and every stream goes
on. With `--rounds N` the engine is killed N more times, and nothing may be left of those before.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from engine.faults import cause, faulty
from livery.models import resolve_model

ERROR_S, UNREADY_S, BACK_S = 5.0, 2.0, 120.0
NEIGHBOURS = 8  # processes that want the core of the engine
LOWEST = 19  # nice: of the engine beside them, which leaves it a five-hundredth of the core
DEMO, ADAPTER = Path(__file__).parents[2] / "adapters" / "demo", "pirate"
PROMPT = "Once upon a time"
# Of one length, streamed or not: the engine knows such steps. Sampled answers would end when they like.
LONG = {"prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True}


@dataclass
class Stream:
    """What one client saw: when its first token and its newest came, when it ended and how."""

    first_s: float = 0.0
    newest_s: float = 0.0
    ended_s: float = 0.0
    end: str = ""


async def stream(client: httpx.AsyncClient, seen: Stream, begun: asyncio.Semaphore) -> None:
    async with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                seen.newest_s = time.monotonic()
                if not seen.first_s:
                    seen.first_s = seen.newest_s
                    begun.release()
            if '"error"' in line or line == "data: [DONE]":
                seen.end = line
    seen.ended_s = time.monotonic()


async def start_streams(client: httpx.AsyncClient, count: int) -> tuple[list[Stream], list[asyncio.Task[None]]]:
    """So many streams, each of which has its first token."""
    begun = asyncio.Semaphore(0)
    seen = [Stream() for _ in range(count)]
    tasks = [asyncio.create_task(stream(client, one, begun)) for one in seen]
    for _ in seen:
        await begun.acquire()
    return seen, tasks


async def probe(client: httpx.AsyncClient, changes: list[tuple[float, int]]) -> None:
    """Note each change of what /ready says."""
    while True:
        status = (await client.get("/ready")).status_code
        if not changes or changes[-1][1] != status:
            changes.append((time.monotonic(), status))
        await asyncio.sleep(0.05)


async def adapted(client: httpx.AsyncClient) -> tuple[int, str]:
    """The status of a request for the adapter, and what came of it."""
    body = {"model": ADAPTER, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    answer = await client.post("/v1/completions", json=body)
    return answer.status_code, answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text


async def round_of(run: common.Run, url: str, pid: int, fault: str, faults: Path, streams: int) -> None:
    """One fault under load."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        before = await adapted(client)
        seen, tasks = await start_streams(client, streams)
        whole = asyncio.create_task(client.post("/v1/completions", json=LONG))
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
        after = await adapted(client)
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
    run.check(f"{fault}: the adapter's answer is the one before it, {after}", after == before and after[0] == 200)


@contextmanager
def squeezed(pid: int) -> Iterator[None]:
    """All threads of a process on one core, at the lowest priority, beside others that always want it."""
    cores = os.sched_getaffinity(pid)
    core = {max(cores)}
    for thread in _threads(pid):
        os.sched_setaffinity(thread, core)
        os.setpriority(os.PRIO_PROCESS, thread, LOWEST)
    session = common.PROC / str(pid) / "autogroup"  # where the kernel has it, priorities hold within a session alone
    if session.exists():
        session.write_text(str(LOWEST))
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin, start_new_session=True) for _ in range(NEIGHBOURS)]
    for one in busy:
        os.sched_setaffinity(one.pid, core)
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()
        with suppress(OSError):  # it was lost
            for thread in _threads(pid):
                os.sched_setaffinity(thread, cores)
            if session.exists():
                session.write_text("0")


def time_of(changes: list[tuple[float, int]], status: int, begun: float, ended: float) -> float:
    """Seconds between two moments in which /ready said so."""
    until = [when for when, _ in changes[1:]] + [ended]
    spans = zip(changes, until, strict=True)
    return sum(max(0.0, min(end, ended) - max(when, begun)) for (when, said), end in spans if said == status)


def _threads(pid: int) -> list[int]:
    return [int(thread.name) for thread in (common.PROC / str(pid) / "task").iterdir()]


async def starve(run: common.Run, url: str, pid: int, streams: int, seconds: float) -> None:
    """The engine gets next to nothing of its core for so long, and then as much as it wants."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        seen, tasks = await start_streams(client, streams)
        changes: list[tuple[float, int]] = []
        prober = asyncio.create_task(probe(client, changes))
        await asyncio.sleep(2)  # some steps later
        engine = common.engine_of(pid)
        run.say(f"starve: the engine, process {engine}, has its core to itself no more, under {streams} streams")
        at = time.monotonic()
        with squeezed(engine):
            await asyncio.sleep(seconds)
            fed = time.monotonic()
        async with asyncio.timeout(BACK_S):
            while changes[-1][1] != 200 or any(one.newest_s < fed and not one.ended_s for one in seen):
                await asyncio.sleep(0.05)
            back = time.monotonic()
        prober.cancel()
        going = sum(not one.ended_s for one in seen)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        after = await client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 4})
    for when, status in changes:
        run.say(f"starve: /ready {status} after {when - at:.2f} s")
    run.say(f"starve: it had its core again after {fed - at:.2f} s, each stream its next token after {back - at:.2f} s")
    unready = time_of(changes, 503, at, fed)
    # Not all of it: now and then the little that it gets is enough for a step.
    run.check(f"starve: /ready was 503 for {unready:.1f} of these {seconds:.0f} s", unready >= seconds / 2)
    run.check(f"starve: {going} of {streams} streams go on", going == streams)
    run.check("starve: the engine is the same process", common.engine_of(pid) == engine)
    run.check(f"starve: the next request got {after.status_code}", after.status_code == 200)


def main() -> int:
    given = common.arguments(__doc__ or "", streams=16, starved=20.0, rounds=0)
    common.skip_unless_linux("engine_kill.py")
    run = common.Run("the engine is lost under load", given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ("--engine-restarts", str(given.rounds + 10), "--max-model-len", "2048")
        environ = faulty(folder / "faults")
        shutil.copytree(DEMO / ADAPTER, folder / "adapters" / ADAPTER)
        model = str(resolve_model("smollm2-135m-instruct").path)
        with common.served(model, folder, *flags, adapters=folder / "adapters", environ=environ) as server:
            httpx.post(f"{server.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 40}, timeout=120)
            asyncio.run(starve(run, server.url, server.pid, given.streams, given.starved))
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
    return len(list(Path(tempfile.gettempdir()).glob("livery-engine-*")))


if __name__ == "__main__":
    sys.exit(main())
