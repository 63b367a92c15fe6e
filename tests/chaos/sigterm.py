"""SIGTERM under load: what runs and waits finishes, what comes is refused, and the second signal ends it all.

python tests/chaos/sigterm.py [--seed N]
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from livery.models import resolve_model

RUNNING, QUEUED = 8, 8
PROMPT = "Once upon a time"


@dataclass
class Ended:
    status: int = 0
    last: str = ""
    after_s: float = 0.0


async def stream(client: httpx.AsyncClient, tokens: int, ended: Ended, sent: asyncio.Semaphore) -> None:
    body = {"prompt": PROMPT, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            ended.status = answer.status_code
            async for line in answer.aiter_lines():
                if line:
                    ended.last = line
                    sent.release()
    except httpx.TransportError as error:
        ended.last = repr(error)
    ended.after_s = time.monotonic()


async def under_load(url: str, process: subprocess.Popen[str], tokens: int, signals: int) -> tuple[list[Ended], float]:
    """Streams that run and streams that wait, then the signals; when the process has ended, how long that took."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        sent = asyncio.Semaphore(0)
        ends = [Ended() for _ in range(RUNNING + QUEUED)]
        tasks = [asyncio.create_task(stream(client, tokens, one, sent)) for one in ends]
        for _ in range(2 * RUNNING):
            await sent.acquire()
        at = time.monotonic()
        for number in range(signals):
            await asyncio.sleep(0.5 if number else 0)
            process.send_signal(signal.SIGTERM)
            at = time.monotonic() if number == signals - 1 else at
        late = await refused(url) if signals == 1 and tokens < 1000 else []
        await asyncio.gather(*tasks)
        await asyncio.to_thread(process.wait, 120)
        took = time.monotonic() - at
        for one in ends:
            one.after_s -= at
        LATE[:] = late
        return ends, took


LATE: list[tuple[str, int, str]] = []


async def refused(url: str) -> list[tuple[str, int, str]]:
    """What whoever comes now is told, on connections of their own."""
    found = []
    await asyncio.sleep(0.3)
    for method, path in (("GET", "/ready"), ("POST", "/v1/completions"), ("GET", "/health")):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            answer = await client.request(method, path, json={"prompt": PROMPT} if method == "POST" else None)
            found.append((f"{method} {path}", answer.status_code, answer.headers.get("retry-after", "")))
    return found


def drained(run: common.Run, model: str, folder: Path) -> None:
    folder.mkdir()
    with common.served(model, folder, "--max-running", str(RUNNING), "--drain-timeout", "120") as server:
        ends, took = asyncio.run(under_load(server.url, server.process, 48, 1))
    done = sum(one.last == "data: [DONE]" for one in ends)
    run.say(f"drain: {done} of {len(ends)} streams came to their end; exit 0 after {took:.1f} s")
    run.check("drain: every stream came to its end", done == len(ends))
    for what, status, retry in LATE:
        expected = 200 if what == "GET /health" else 503
        run.check(f"drain: {what} meanwhile is {status}, retry-after {retry or 'none'}", status == expected)
        run.check(f"drain: {what} says when to come again", bool(retry) == (status == 503))


def cut_short(run: common.Run, model: str, folder: Path) -> None:
    folder.mkdir()
    with common.served(model, folder, "--max-running", str(RUNNING), "--drain-timeout", "2") as server:
        ends, took = asyncio.run(under_load(server.url, server.process, 4000, 1))
    told = sum('"error"' in one.last or one.status == 503 for one in ends)
    run.say(
        f"timeout of 2 s: {told} of {len(ends)} streams were told that this isn't their end; exit 0 after {took:.1f} s"
    )
    run.check("timeout: nobody was left without a word, none got [DONE]", told == len(ends))
    run.check("timeout: it ended within 6 s", took <= 6)


def twice(run: common.Run, model: str, folder: Path) -> None:
    folder.mkdir()
    flags = ("--max-running", str(RUNNING), "--drain-timeout", "120")
    with common.served(model, folder, *flags, ends_with=128 + signal.SIGTERM) as server:
        engine = common.engine_of(server.pid)
        _, took = asyncio.run(under_load(server.url, server.process, 4000, 2))
        gone = common.until(lambda: common.is_zombie(engine), 5)
    run.say(f"second signal: exit {128 + signal.SIGTERM} after {took:.2f} s")
    run.check("second signal: it ended within 2 s", took <= 2)
    run.check("second signal: its engine is gone too", gone is not None)


def while_loading(run: common.Run, model: str, folder: Path) -> None:
    folder.mkdir()
    command = [sys.executable, "-m", "livery", "serve", "--model", model, "--port", "0", "--data", str(folder / "data")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    common.until(lambda: any(b"engine.process" in common.command(pid) for pid in common.children(process.pid)), 60)
    time.sleep(run.dice.uniform(0, 2))
    engine = common.engine_of(process.pid)
    at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status = process.wait(60)
    took = time.monotonic() - at
    run.say(f"while loading: exit {status} after {took:.2f} s")
    run.check("while loading: it ended within 5 s", took <= 5)
    run.check("while loading: its engine is gone too", common.until(lambda: common.is_zombie(engine), 5) is not None)


def main() -> int:
    given = common.arguments(__doc__ or "", model="smollm2-135m-instruct")
    common.skip_unless_linux("sigterm.py")
    run = common.Run("SIGTERM under load", given.seed)
    model = str(resolve_model(given.model).path)
    with tempfile.TemporaryDirectory() as name:
        for part in (drained, cut_short, twice, while_loading):
            part(run, model, Path(name) / part.__name__)
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
