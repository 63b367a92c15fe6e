"""Clients that leave at any moment leave no task behind, whatever their request was waiting for."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import pytest

from api.live_server import LiveServer, Serve, Setup
from chaos.disconnects import storm
from livery.engine.fake import Behaviour

SEED = 7


def stormed(server: LiveServer, seed: int, requests: int) -> Counter[str]:
    """Who left when; the engine computes for as long as there are clients, and no longer."""
    left: Counter[str] = Counter()
    storming = threading.Thread(target=lambda: left.update(storm(server.url, seed, requests)))
    storming.start()
    while storming.is_alive():
        server.step(5)
        storming.join(0.01)
    return left


async def tasks() -> Counter[str]:
    """Those of the server, by what they run."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return Counter(getattr(task.get_coro(), "__qualname__", "") for task in others)


@pytest.mark.parametrize("stepped", [True, False])
def test_no_task_is_left_of_clients_that_leave(serve: Serve, stepped: bool) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=stepped), max_open=16))
    before = server.call(tasks())
    left = stormed(server, SEED, 60)
    assert left.total() == 60
    assert len(left) >= 8, left

    async def idle() -> Counter[str]:
        """What is left once nothing is open, or at the end of the patience; nothing is computed meanwhile."""
        over: Counter[str] = Counter()
        for _ in range(1000):
            over = await tasks() - before
            if not (over or server.engine.open_requests or server.gate.room.sequences.held):
                break
            await asyncio.sleep(0.02)
        return over

    assert not server.call(idle())
    assert server.engine.open_requests == 0
    assert server.gate.room.sequences.held == 0


PROMPT = {"prompt": [3, 4, 5], "max_tokens": 9}
USER = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
WAITING: list[tuple[str, dict[str, Any], int]] = [  # and how many requests it is to the engine
    ("/v1/chat/completions", {**USER, "stream": True}, 1),
    ("/v1/completions", {**PROMPT, "stream": True}, 1),
    ("/v1/completions", PROMPT, 1),
    ("/v1/completions", {**PROMPT, "n": 3, "stream": True}, 3),
    ("/v1/chat/completions", USER, 1),
    ("/v1/messages", {**USER, "stream": True}, 1),
    ("/v1/messages", USER, 1),
    ("/v1/responses", {"input": "Hi", "stream": True}, 1),
    ("/v1/responses", {"input": "Hi"}, 1),
    ("/v1/embeddings", {"input": [[3], [4, 5]]}, 2),
    ("/v1/score", {"text_1": "a", "text_2": "b"}, 2),
]


@pytest.mark.parametrize("begun", [False, True])
def test_what_waits_for_the_engine_ends_with_its_client(serve: Serve, begun: bool) -> None:
    """Nothing is computed once the clients have left: what ends then was given up, and nothing else ended it."""
    server = serve(Setup(behaviour=Behaviour(stepped=True)))
    place, asked = urlsplit(server.url), sum(count for *_, count in WAITING)
    clients = []
    for path, body, _ in WAITING:
        data = json.dumps(body).encode()
        clients.append(socket.create_connection((place.hostname, place.port), timeout=30))
        head = (
            f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        clients[-1].sendall(head.encode() + data)
        if len(clients) == 1:  # the engine's first request has its first token
            server.wait_until(lambda engine: engine.open_requests == 1)
    server.wait_until(lambda engine: engine.open_requests == asked)
    if begun:  # a token for the first one, whose stream begins by saying who speaks
        server.step()
        assert clients[0].recv(1 << 16)
    assert server.engine.aborted == []
    for client in clients:
        client.close()
    server.wait_until(lambda engine: engine.open_requests == 0)
    assert len(server.engine.aborted) == asked
