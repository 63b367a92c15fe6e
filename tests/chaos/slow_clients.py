"""Clients that send or take next to nothing, beside one that behaves: nobody else notices, and nothing piles up.

    python tests/chaos/slow_clients.py [--seed N] [--readers 50] [--senders 200]

Half of the readers take a byte a second of their streams, half nothing. The senders send heads, or bodies, byte by
byte, or nothing at all.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common
from livery.api.edges import HEAD_TIMEOUT_S
from livery.api.sse import SEND_TIMEOUT_S
from server.running import RunningServer, tiny_model

TPOT, GROWTH_MB = 1.10, 64.0
TOKENS = 200  # of a stream
BUFFER, SEGMENT = 1, 536  # bytes: of the readers, the former raised by the kernel to its least: it takes 40 KB for each


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


async def reader(host: str, port: int, slowly: bool, over: asyncio.Event) -> str:
    """One stream whose client hardly takes anything until it is over; what there is of it then."""
    body = {"prompt": [8, 9], "max_tokens": TOKENS, "stream": True, "ignore_eos": True, "temperature": 0, "logprobs": 5}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    loop, received = asyncio.get_running_loop(), b""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        await loop.sock_connect(sock, (host, port))
        await loop.sock_sendall(sock, head.encode() + b"\r\n\r\n" + data)
        while not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 1)
            if slowly:
                received += await loop.sock_recv(sock, 1)
        try:
            while piece := await loop.sock_recv(sock, 1 << 16):
                received += piece
        except ConnectionResetError:
            pass
    return "whole" if b"[DONE]" in received else "cut off"


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


async def measure(run: common.Run, server: RunningServer, readers: int, senders: int) -> None:
    host, port, url = "127.0.0.1", int(server.url.rpartition(":")[2]), server.url
    alone = statistics.median([await between_tokens(url, TOKENS) for _ in range(5)])
    size, descriptors = common.resident_mb(server.pid), common.descriptors(server.pid)
    begun, over = time.monotonic(), asyncio.Event()
    slow = [asyncio.create_task(reader(host, port, number % 2 == 0, over)) for number in range(readers)]
    kinds = [("nothing", "head", "body")[number % 3] for number in range(senders)]
    dripping = [asyncio.create_task(sender(host, port, kind)) for kind in kinds]
    await asyncio.sleep(1)
    computed = await asyncio.to_thread(common.until, lambda: _computing(url) == 0, SEND_TIMEOUT_S)
    run.check(
        f"readers: the engine was done with what they asked for after {time.monotonic() - begun:.0f} s",
        computed is not None,
    )
    beside, largest = [], size
    while time.monotonic() - begun < SEND_TIMEOUT_S - 3:
        beside.append(await between_tokens(url, TOKENS))
        largest = max(largest, common.resident_mb(server.pid))
    waiting = await asyncio.to_thread(_load, url)
    run.check(f"readers: {waiting} of {readers} have most of their streams to take until then", waiting == readers)
    ratio = statistics.median(beside) / alone
    run.say(
        f"time between tokens: {alone * 1000:.2f} ms alone, {ratio:.2f} times that beside them ({len(beside)} times)"
    )
    run.check(f"others: time between tokens within {TPOT:.2f} times", ratio <= TPOT)
    run.check(f"memory: {size:.0f} MB before, at most {largest:.0f} MB beside them", largest - size <= GROWTH_MB)
    told = Counter(zip(kinds, await asyncio.gather(*dripping), strict=True))
    run.say(f"senders: {dict(told)}")
    allowed = {("nothing", "closed"), ("head", "408"), ("body", "408")}
    run.check(f"senders: all were closed, heads after {HEAD_TIMEOUT_S:.0f} s", set(told) <= allowed)
    idle = await asyncio.to_thread(common.until, lambda: _load(url) == 0, 3 * SEND_TIMEOUT_S)
    run.check(f"readers: none was served any more after {time.monotonic() - begun:.0f} s", idle is not None)
    closed = lambda: common.descriptors(server.pid) <= descriptors + 2  # noqa: E731
    held = await asyncio.to_thread(common.until, closed, 3 * SEND_TIMEOUT_S)
    run.check(f"readers: their connections were closed after {time.monotonic() - begun:.0f} s", held is not None)
    over.set()
    ends = Counter(await asyncio.gather(*slow))
    run.check(f"readers: {dict(ends)}", set(ends) == {"cut off"})


def _computing(url: str) -> float:
    series = common.gauges(url)
    return series["vllm:num_requests_running"] + series["vllm:num_requests_waiting"]


def _load(url: str) -> int:
    return int(httpx.get(f"{url}/load", timeout=30).json()["server_load"])


def main() -> int:
    given = common.arguments(__doc__ or "", readers=50, senders=200)
    common.skip_unless_linux("slow_clients.py")
    run = common.Run(f"{given.readers} slow readers and {given.senders} slow senders", given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with common.served(tiny_model(folder / "tiny"), folder, "--threads", "1") as server:
            asyncio.run(measure(run, server, given.readers, given.senders))
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
