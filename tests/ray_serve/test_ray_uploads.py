"""How bodies come to replicas: uploads piece by piece, others by the ingress, where strangers take no room."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from peft import LoraConfig
from ray.exceptions import RayError
from ray.util.queue import Queue

from engine.oracle import save_adapter
from livery.api.boundary import MAX_BODY
from livery.scale.ray_app import ComingBody
from livery.scale.ray_bodies import MOST_HELD
from ray_serve.clients import upload
from ray_serve.cluster import Deployed, until, worker_pids


@pytest.fixture(scope="module")
def cook(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "cook"
    save_adapter(tiny, folder, 1, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    return folder


class Left(Exception):
    """What makes a client leave."""


def test_no_upload_leaves_a_process_behind(deployed: Deployed, cook: Path) -> None:
    """Whether it is taken in, refused in the middle, or its client leaves there."""

    def begun() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="adapter_config.json"\r\n\r\n{'
        until(bodies, "the replica takes the body")
        raise Left

    with deployed.http() as http:
        assert upload(http, "cook", cook).status_code in (200, 201)
        until(lambda: not bodies(), "nothing is left of an upload that was taken in")
        refused = http.post("/v1/adapters/parrot/versions", files={"adapter_config.json": b"x" * (4 << 20)})
        assert 400 <= refused.status_code < 500, refused.text
        until(lambda: not bodies(), "nothing is left of an upload that was refused")
        multipart = {"content-type": "multipart/form-data; boundary=x"}
        with pytest.raises(Left):
            http.post("/v1/adapters/parrot/versions", content=begun(), headers=multipart)
    until(lambda: not bodies(), "nothing is left of an upload whose client left")


def bodies() -> list[int]:
    """The processes through which uploads come."""
    return worker_pids("_QueueActor")


async def test_the_process_of_an_upload_is_ended_beside_the_event_loop(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long that takes, streams go on; and where it fails, that is said."""
    begun, gone_on, end = threading.Event(), threading.Event(), Queue.shutdown

    def slow(queue: Queue, *how: object, **ways: object) -> None:
        end(queue, *how, **ways)
        begun.set()
        assert gone_on.wait(30), "the event loop is held up"
        raise RayError("it doesn't end")

    monkeypatch.setattr(Queue, "shutdown", slow)
    body = ComingBody()
    queue = await body.open()
    await queue.put_async(b"weights")
    await queue.put_async(b"")
    assert [await body.pull(), await body.pull()] == [b"weights", b""]
    ending = body.close()
    assert ending is not None
    await asyncio.to_thread(begun.wait)
    gone_on.set()
    await asyncio.wait([ending])
    assert "an upload's process wasn't ended: RayError: it doesn't end" in caplog.text


def test_bodies_that_do_not_come_take_no_room(deployed: Deployed) -> None:
    """Twice as many as an ingress holds of the longest, from strangers: who they are, replicas alone would know."""
    url = httpx.URL(deployed.url)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {url.host}\r\ncontent-length: {MAX_BODY}\r\n\r\n{{"
    ingresses = int(str(deployed.args["ingress_replicas"]))
    with ExitStack() as stack, deployed.http() as http:
        for _ in range(2 * ingresses * MOST_HELD // MAX_BODY):
            stranger = stack.enter_context(socket.create_connection((url.host, url.port or 80)))
            stranger.sendall(head.encode())
        body = {"model": "nobody", "prompt": "x", "max_tokens": 1}
        answers = [http.post("/v1/completions", json=body) for _ in range(16)]
    assert {answer.status_code for answer in answers} == {404}, answers[0].text
