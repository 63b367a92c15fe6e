"""What probes are told, and what requests are, while an engine is lost, and when something beside the requests ends."""

from __future__ import annotations

import asyncio
import logging
import threading

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.live_server import LiveServer, Serve, Setup
from livery.engine.fake import RETRY_AFTER_S, Behaviour

# Every task that a server runs beside its requests. A new one has to be named here, and so is ended below.
TASKS = (
    "registry-follower", "adapter-sweeper", "pinned-adapters", "folder-follower", "key-follower", "usage-writer",
    "metrics-settling",
)  # fmt: skip
# The test's own, and those that end with the server.
OTHERS = {"LiveServer._main", "Server.serve", "test_every_task_beside_the_requests_has_a_case.<locals>.unnamed"}
PROMPT = {"prompt": [3, 4], "max_tokens": 3}


def status(server: LiveServer, path: str) -> tuple[int, str]:
    answer = httpx.get(f"{server.url}/{path}", timeout=30)
    body = answer.json()
    return answer.status_code, body["status"] if answer.status_code == 200 else body["error"]["code"]


def told_ready(server: LiveServer) -> float:
    """livery_ready at a scrape."""
    answer = httpx.get(f"{server.url}/metrics", timeout=30)
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    (ready,) = [sample.value for family in families for sample in family.samples if sample.name == "livery_ready"]
    return ready


def test_a_lost_engine_is_told_to_everybody_and_forgotten_when_it_is_back(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), keep_alive_s=0.02))  # streams begin with a comment
    client = server.client()
    streams = [
        client.completions.create(model="base-model", prompt=[3, 4], max_tokens=3, stream=True) for _ in range(2)
    ]
    waiting = httpx.Client(base_url=server.url, timeout=30)
    answers: list[httpx.Response] = []
    whole = threading.Thread(target=lambda: answers.append(waiting.post("/v1/completions", json=PROMPT)))
    whole.start()
    server.wait_until(lambda engine: engine.open_requests == 3)
    server.call(_soon(server.engine.lose))
    for stream in streams:
        with pytest.raises(openai.APIError) as failed:
            list(stream)
        assert failed.value.code == "engine_restarting"
    whole.join(30)
    for refused in (answers[0], waiting.post("/v1/completions", json=PROMPT)):
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == str(RETRY_AFTER_S)
        assert refused.json()["error"]["code"] == "engine_restarting"
    assert status(server, "ready") == (503, "engine_restarting")
    assert status(server, "health") == (200, "restarting")
    assert told_ready(server) == 0

    server.call(_soon(server.engine.recover))
    assert status(server, "ready") == (200, "ready")
    assert told_ready(server) == 1
    server.step(10)
    assert waiting.post("/v1/completions", json=PROMPT).status_code == 200
    assert server.gate.room.sequences.held == 0
    server.call(server.engine.die())
    assert status(server, "ready") == (503, "not_ready")
    assert status(server, "health") == (503, "not_ready")


def test_every_task_beside_the_requests_has_a_case(server: LiveServer) -> None:
    async def unnamed() -> set[str]:
        running = [task for task in asyncio.all_tasks() if task.get_name() not in TASKS]
        return {getattr(task.get_coro(), "__qualname__", "") for task in running}

    assert set(server.service.adapters.vitals.names) == set(TASKS)
    assert server.call(unnamed()) <= OTHERS, "tasks that no probe would miss"


@pytest.mark.parametrize("name", TASKS)
def test_a_server_that_lost_a_task_says_so(serve: Serve, name: str, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()

    async def end() -> None:
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert status(server, "ready") == (200, "ready")
    assert told_ready(server) == 1
    with caplog.at_level(logging.CRITICAL):
        server.call(end())
        assert status(server, "ready") == (503, "not_ready")
    assert told_ready(server) == 0
    assert name in caplog.text
    assert status(server, "health") == (503, "not_ready")


async def _soon(act: object) -> None:
    assert callable(act)
    act()
