"""Adapters on their way in: bounded in number and in time, and nobody else waits for a slow one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from fastapi import Request
from starlette.types import Message

from adapters.hub_server import REPO, HubServer, hang
from api.live_server import LiveServer, Serve, Setup
from api.peft_files import make_adapter
from api.tenants import files
from livery.api.errors import BodyTooSlow
from livery.api.uploads import MIN_RATE, SLOW_START_S, UPLOAD_TIMEOUT_S, Pace, uploaded
from livery.intakes import MAX_INTAKES, Intakes
from livery.refusals import TooManyIntakes
from livery.tenancy import LimitExceeded
from livery_adapters.fetching import Interrupt, Interrupted, SourcePolicy

MULTIPART = {"content-type": "multipart/form-data; boundary=xx"}
OPENING = b'--xx\r\ncontent-disposition: form-data; name="adapter_model.safetensors"\r\n\r\n'


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/load_lora_adapter",
        "/v1/adapters/x/activate",
        "/v1/nowhere/versions",
        "/v1/adapters:check/",
    ],
)
def test_multipart_is_no_way_around_the_limit_of_a_body(server: LiveServer, path: str) -> None:
    pieces = (OPENING if number == 0 else b"z" * (1 << 20) for number in range(4))
    answer = httpx.post(server.url + path, content=pieces, headers=MULTIPART, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


class _Dripping:
    """A client whose messages of `size` bytes come `every` seconds, on a clock that only it moves."""

    def __init__(self, size: int, every: float) -> None:
        self.now, self.sent = 0.0, 0
        self._size, self._every = size, every

    async def receive(self) -> Message:
        self.now += self._every
        body = b"z" * self._size if self.sent else OPENING
        self.sent += self._size
        return {"type": "http.request", "body": body, "more_body": True}

    async def upload(self) -> None:
        headers = [(name.encode(), value.encode()) for name, value in MULTIPART.items()]
        request = Request({"type": "http", "method": "POST", "headers": headers}, self.receive)
        async for _ in uploaded(request, Pace(lambda: self.now)):
            pass


@pytest.mark.parametrize(
    ("rate", "ends", "words"),
    [
        (MIN_RATE // 2, SLOW_START_S, "more slowly than 16 KiB per second"),
        (MIN_RATE * 2, UPLOAD_TIMEOUT_S, "over 3600 seconds"),
    ],
)
def test_an_upload_keeps_up_a_rate_and_has_an_end(rate: int, ends: float, words: str) -> None:
    client = _Dripping(rate * 5, 5.0)
    with pytest.raises(BodyTooSlow, match=words):
        asyncio.run(client.upload())
    assert ends < client.now <= ends + 5


def test_as_many_intakes_at_once_as_there_are_places() -> None:
    intakes = Intakes(limit=1)
    with intakes.claim("default"), pytest.raises(TooManyIntakes), intakes.claim("default"):
        pass
    with intakes.claim("default"):
        pass


def test_a_tenant_leaves_half_of_the_places_to_others() -> None:
    intakes = Intakes(limit=4)
    with intakes.claim("acme"), intakes.claim("acme"):
        with pytest.raises(LimitExceeded, match="a tenant may have 2 at once"), intakes.claim("acme"):
            pass
        with intakes.claim("bob"), intakes.claim("default"), pytest.raises(TooManyIntakes), intakes.claim("cora"):
            pass
    with intakes.claim("acme"), ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(intakes.claim("default"))


def test_slow_uploads_of_one_tenant_leave_room_for_the_others(serve: Serve, tmp_path: Path) -> None:
    """The first half of each upload comes, and the second when the test has seen what it came for."""
    server, saved = serve(folder=tmp_path), make_adapter(tmp_path / "saved")
    keys = {tenant: {"authorization": f"Bearer {server.make_key(tenant, role='owner')}"} for tenant in ("acme", "bob")}
    arrived, go_on = threading.Semaphore(0), threading.Event()

    def halves() -> Iterator[bytes]:
        yield OPENING + b"z" * 100
        arrived.release()
        go_on.wait(30)
        yield b"z\r\n--xx--\r\n"

    def slow(number: int) -> int:
        url = f"{server.url}/v1/adapters/slow{number}/versions"
        return httpx.post(url, content=halves(), headers=MULTIPART | keys["acme"], timeout=60).status_code

    def upload(tenant: str) -> httpx.Response:
        return httpx.post(
            f"{server.url}/v1/adapters/one/versions", files=files(saved), headers=keys[tenant], timeout=60
        )

    with ThreadPoolExecutor(MAX_INTAKES) as pool:
        under_way = [pool.submit(slow, number) for number in range(MAX_INTAKES // 2)]
        for _ in under_way:
            assert arrived.acquire(timeout=30)
        refused = upload("acme")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 0
        assert upload("bob").status_code == 200
        go_on.set()
        assert [one.result() for one in under_way] == [422] * len(under_way)  # no adapters
    assert upload("acme").status_code == 200


def test_what_was_given_up_keeps_its_place_until_its_thread_ends() -> None:
    released, seen = threading.Event(), Interrupt()
    threads: list[threading.Thread] = []

    def stuck(interrupt: Interrupt) -> None:
        nonlocal seen
        seen = interrupt
        threads.append(threading.current_thread())
        released.wait(30)

    async def main() -> None:
        intakes = Intakes(limit=1)

        async def one() -> None:
            with intakes.claim("acme"):
                await intakes.run("acme", stuck)

        task = asyncio.create_task(one())
        while not threads:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Interrupted):
            seen.check()
        with pytest.raises(LimitExceeded), intakes.claim("acme"):
            pass
        with pytest.raises(TooManyIntakes), intakes.claim("default"):
            pass
        released.set()
        threads[0].join(30)
        with intakes.claim("acme"):
            pass

    asyncio.run(main())


def test_sources_that_hang_hold_up_neither_requests_nor_the_end(hub: HubServer, serve: Serve, tmp_path: Path) -> None:
    server = serve(Setup(drain_s=0), folder=tmp_path)
    make_adapter(server.adapter_root / ".pool" / "one", seed=1)
    server.management._origins._policy = SourcePolicy(["hf://", str(server.adapter_root)])
    arrived = threading.Semaphore(0)

    def hanging(handler: BaseHTTPRequestHandler) -> None:
        arrived.release()
        hang(hub)(handler)

    hub.special["/revision/main"] = [hanging] * MAX_INTAKES
    with ThreadPoolExecutor(MAX_INTAKES) as pool:
        for number in range(MAX_INTAKES):
            pool.submit(httpx.put, f"{server.url}/v1/adapters/n{number}", json={"source": f"hf://{REPO}"}, timeout=60)
        for _ in range(MAX_INTAKES):
            assert arrived.acquire(timeout=30)
        for path, status in (("/v1/models/nobody", 404), ("/v1/adapters", 200)):
            assert httpx.get(server.url + path, timeout=30).status_code == status
        refused = httpx.put(f"{server.url}/v1/adapters/more", json={"source": ".pool/one"}, timeout=30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_intakes")
        assert int(refused.headers["retry-after"]) > 0
        server.stop()
        assert not hub.released.is_set(), "the server ended while its sources still hung"


def test_a_pin_that_can_not_be_kept_is_not_written_down(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=tmp_path)
    make_adapter(server.adapter_root / ".pool" / "one", seed=1)
    url = f"{server.url}/v1/adapters/aside"
    assert httpx.put(url, json={"source": ".pool/one", "activate": False}, timeout=30).status_code == 200
    refused = httpx.post(f"{url}/pin", timeout=30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_load_failed")
    assert httpx.get(url, timeout=30).json()["pinned"] is False
    assert httpx.post(f"{url}/unpin", timeout=30).status_code == 200, "taking a pin away loads nothing"
