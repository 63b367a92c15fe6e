"""Clients that leave at any moment, in any way: nothing of their requests may be left.

    python tests/chaos/disconnects.py [--seed N] [--requests 500]

Requests wait for room, are read, write, or have written their last token when their client goes, with an end (FIN) or
without one (RST). Then the engine must be idle, with every block free, and the server
with as few descriptors as before.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import common

AT_ONCE = 24
MOMENTS = ("sending", "queued", "prefill", "decoding", "last token", "done")
ROUTES = ("stream", "stream", "whole", "chat", "embeddings", "tokenize", "grammar")


def body_of(route: str, dice: random.Random) -> tuple[str, dict[str, object]]:
    prompt = [dice.randrange(3, 40000) for _ in range(dice.randrange(2, 100))]
    tokens = dice.randrange(1, 60)
    match route:
        case "embeddings":
            return "/v1/embeddings", {"model": "", "input": [prompt[:50]] * dice.randrange(1, 8)}
        case "tokenize":
            return "/tokenize", {"prompt": "word " * dice.randrange(1, 4000)}
        case "chat":
            messages = [{"role": "user", "content": "say " * 20}]
            return "/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "stream": dice.random() < 0.5}
        case "grammar":
            choice = [f"{dice.randrange(1 << 30)}" for _ in range(3)]
            return "/v1/completions", {"prompt": prompt, "max_tokens": tokens, "guided_choice": choice}
        case _:
            body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "n": dice.choice((1, 1, 3))}
            return "/v1/completions", {**body, "stream": route == "stream"}


def leave(url: str, seed: str) -> str:
    """One request whose client goes at a moment of its own; says which."""
    dice = random.Random(seed)
    route, moment, reset = dice.choice(ROUTES), dice.choice(MOMENTS), dice.random() < 0.5
    path, body = body_of(route, dice)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    where = urlsplit(url)
    assert where.hostname is not None
    connection = socket.create_connection((where.hostname, where.port or 80), timeout=60)
    try:
        if moment == "sending":
            connection.sendall(head.encode() + data[: len(data) // 2])
            return f"{moment} {'RST' if reset else 'FIN'}"
        connection.sendall(head.encode() + data)
        if moment == "queued":
            connection.settimeout(dice.uniform(0.001, 0.02))
        elif moment == "prefill":
            connection.settimeout(dice.uniform(0.02, 0.2))
        received = b""
        try:
            while not _far_enough(received, moment, dice):
                piece = connection.recv(4096)
                if not piece:
                    break
                received += piece
        except TimeoutError:
            pass
        return f"{moment} {'RST' if reset else 'FIN'}"
    finally:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def _far_enough(received: bytes, moment: str, dice: random.Random) -> bool:
    match moment:
        case "decoding":
            return len(received) > dice.randrange(200, 4000) or b"\r\n\r\n" in received
        case "last token":
            return b'"finish_reason":"' in received or _is_whole(received)
        case "done":
            return _is_whole(received)
        case _:
            return False


def _is_whole(received: bytes) -> bool:
    """Whether this is all of an answer."""
    return b"[DONE]" in received or received.endswith(b"0\r\n\r\n") or b"content-length" in received


def storm(url: str, seed: int, requests: int) -> Counter[str]:
    """So many clients, some at a time; how many left at which moment."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(pool.map(lambda number: leave(url, f"{seed} {number}"), range(requests)))


def is_idle(url: str) -> bool:
    """Whether nothing is open, waits or holds a block."""
    series = common.gauges(url)
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    load = httpx.get(f"{url}/load", timeout=30).json()["server_load"]
    return load == 0 and all(series.get(name, 1.0) == 0 for name in names)


def main() -> int:
    given = common.arguments(__doc__ or "", requests=500)
    common.skip_unless_linux("disconnects.py")
    from server.running import tiny_model

    run = common.Run(f"{given.requests} clients that leave", given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model(folder / "tiny")
        with common.served(model, folder, "--max-running", "6", "--threads", "1") as server:
            storm(server.url, run.seed + 1, 50)  # what is started once: pools, the process that tries grammars
            common.until(lambda: is_idle(server.url), 30)
            before = common.descriptors(server.pid)
            left = storm(server.url, run.seed, given.requests)
            run.say(", ".join(f"{moment}: {count}" for moment, count in sorted(left.items())))
            idle = common.until(lambda: is_idle(server.url), 30)
            run.check(f"idle {'never' if idle is None else f'{idle:.2f} s'} after the last one left", idle is not None)
            held = common.until(lambda: common.descriptors(server.pid) <= before + 2, 30)
            run.check(f"descriptors: {before} before, {common.descriptors(server.pid)} after", held is not None)
            engine = common.engine_of(server.pid)
            spent = common.cpu_s(engine)
            common.until(lambda: False, 2)
            spent = common.cpu_s(engine) - spent
            run.check(f"the engine's process took {spent:.2f} s of processor time in 2 s of rest", spent < 0.5)
            answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": [5, 6], "max_tokens": 3}, timeout=60)
            run.check(f"the next request got {answer.status_code}", answer.status_code == 200)
            log = server.log.read_text()
            run.check("no unexpected error in the log", "unexpected" not in log and "Traceback" not in log)
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
