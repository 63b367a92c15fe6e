"""Clients that send or take next to nothing, beside one that behaves: nobody else notices, and nothing piles up.

    python tests/chaos/slow_clients.py [--seed N] [--readers 50] [--senders 200]

Half of the readers take a byte a second of their streams, half nothing. The senders send heads, or bodies, byte by
byte, or nothing at all.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from livery.api.edges import HEAD_TIMEOUT_S
from livery.api.sse import SEND_TIMEOUT_S

TPOT, GROWTH_MB = 1.10, 64.0
SMALL_BUFFER = 4096  # bytes: of the readers' sockets, so that what they don't take is the server's affair


async def between_tokens(url: str, tokens: int) -> float:
    """Mean time between the tokens of one stream."""
    times = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        body = {"prompt": [5, 6, 7], "max_tokens": tokens, "stream": True, "ignore_eos": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    times.append(time.monotonic())
    return statistics.mean(late - early for early, late in itertools.pairwise(times))


async def reader(host: str, port: int, slowly: bool) -> str:
    """One stream whose client hardly takes anything; how it ended."""
    body = json.dumps({"prompt": [8, 9], "max_tokens": 200, "stream": True, "ignore_eos": True, "n": 8, "logprobs": 5})
    to = asyncio.open_connection(host, port, limit=1)
    incoming, outgoing = await to
    sock = outgoing.get_extra_info("socket")
    sock.setsockopt(1, 8, SMALL_BUFFER)  # SOL_SOCKET, SO_RCVBUF
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    outgoing.write(f"{head}\r\n\r\n{body}".encode())
    outgoing.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        while not outgoing.is_closing():
            await asyncio.sleep(1)
            if slowly:
                outgoing.transport.resume_reading()  # type: ignore[attr-defined]
                if not await incoming.read(1):
                    return "ended"
                outgoing.transport.pause_reading()  # type: ignore[attr-defined]
        return "ended"
    except OSError:
        return "cut off"
    finally:
        outgoing.close()


async def sender(host: str, port: int, kind: str) -> str:
    """One connection that never gets as far as a request; the status that it is told, or how it ended."""
    incoming, outgoing = await asyncio.open_connection(host, port)
    pieces = {
        "nothing": b"",
        "head": b"GET /v1/models HTTP/1.1\r\nhost: a\r\n" + b"x-a: b\r\n" * 1000,
        "body": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n",
    }[kind]
    if kind == "body":
        outgoing.write(pieces)
        pieces = b" " * 1000

    async def drip() -> None:
        for byte in pieces:
            outgoing.write(bytes([byte]))
            await asyncio.sleep(0.5)

    dripping = asyncio.create_task(drip())
    try:
        answer = await incoming.read(12)
        return answer.decode("latin-1")[9:12] or "closed"
    except OSError:
        return "reset"
    finally:
        dripping.cancel()
        outgoing.close()


async def measure(run: common.Run, url: str, pid: int, readers: int, senders: int) -> None:
    host, port = "127.0.0.1", int(url.rpartition(":")[2])
    alone = statistics.median([await between_tokens(url, 200) for _ in range(5)])
    before = common.resident_mb(pid)
    begun = time.monotonic()
    slow = [asyncio.create_task(reader(host, port, slowly=number % 2 == 0)) for number in range(readers)]
    kinds = [("nothing", "head", "body")[number % 3] for number in range(senders)]
    dripping = [asyncio.create_task(sender(host, port, kind)) for kind in kinds]
    await asyncio.sleep(5)  # the engine is done with what they asked for
    beside, largest = [], before
    while time.monotonic() - begun < SEND_TIMEOUT_S - 5:
        beside.append(await between_tokens(url, 200))
        largest = max(largest, common.resident_mb(pid))
    ratio = statistics.median(beside) / alone
    run.say(f"time between tokens: {alone * 1000:.2f} ms alone, {ratio:.2f} times that beside them")
    run.check(f"others: time between tokens within {TPOT:.2f} times", ratio <= TPOT)
    run.check(f"memory: {before:.0f} MB before, at most {largest:.0f} MB beside them", largest - before <= GROWTH_MB)
    told = Counter(zip(kinds, await asyncio.gather(*dripping), strict=True))
    run.say(f"senders: {dict(told)}")
    allowed = {("nothing", "closed"), ("head", "408"), ("body", "408")}
    run.check(f"senders: all were closed, heads after {HEAD_TIMEOUT_S:.0f} s", set(told) <= allowed)
    idle = await asyncio.to_thread(common.until, lambda: _load(url) == 0, 3 * SEND_TIMEOUT_S)
    after = time.monotonic() - begun
    run.check(f"readers: none was served any more after {after:.0f} s", idle is not None)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


def _load(url: str) -> int:
    return int(httpx.get(f"{url}/load", timeout=30).json()["server_load"])


def main() -> int:
    given = common.arguments(__doc__ or "", readers=50, senders=200)
    common.skip_unless_linux("slow_clients.py")
    from server.running import tiny_model

    run = common.Run(f"{given.readers} slow readers and {given.senders} slow senders", given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with common.served(tiny_model(folder / "tiny"), folder, "--threads", "1") as server:
            asyncio.run(measure(run, server.url, server.pid, given.readers, given.senders))
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
