"""Clients that leave at any moment leave no task behind, whatever their request was waiting for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

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
            if not (over or server.engine.open_requests or server.service.open_sequences):
                break
            await asyncio.sleep(0.02)
        return over

    assert not server.call(idle())
    assert server.engine.open_requests == 0
    assert server.service.open_sequences == 0
