"""What errors don't tell: where the server keeps things, and where its database is."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.live_server import LiveServer, Serve, Setup
from api.peft_files import damage_weights, make_adapter
from livery.api import errors
from livery.engine.base import EngineError
from livery.jobs import Job, Options
from livery.refusals import Overloaded
from livery_adapters import registry

VERBS = ("activate", "rollback", "prefetch", "pin", "unpin", "versions")


@pytest.fixture
def live(serve: Serve, tmp_path: Path) -> LiveServer:
    """A server with an adapter, and much that is none, in its folder."""
    pool = tmp_path / "adapters" / ".pool"
    good = make_adapter(pool / "good", seed=1)
    damage_weights(shutil.copytree(good, pool / "damaged"))
    (pool / "empty").mkdir()
    (pool / "pickle").mkdir()
    shutil.copy(good / "adapter_config.json", pool / "pickle")
    (pool / "pickle" / "adapter_model.bin").write_bytes(b"x")
    shutil.copytree(good, tmp_path / "elsewhere")
    (pool / "outside").symlink_to(tmp_path / "elsewhere")
    (pool / "loop").symlink_to("loop")
    (pool / "file").write_bytes(b"x")
    return serve(folder=tmp_path)


SOURCES = (
    "nowhere", "../x", "..", ".", "a//b", "no\\pe", "x" * 1000 + "/./y", "x" * 1024, "x" * 500, "", "a\0b", "~",
    ".pool/damaged", ".pool/empty", ".pool/pickle", ".pool/outside", ".pool/loop", ".pool/file", ".pool/good/x",
    "data", "../data", "/etc", "file://x", "hf://x", "hf://org/name", "s3://b/../x", "s3://b/x", "http://x/y",
)  # fmt: skip


def _bad_requests() -> Iterator[tuple[str, str, Any]]:
    for source in SOURCES:
        yield "PUT", "/v1/adapters/n", {"source": source}
        yield "POST", "/v1/adapters:check", {"source": source}
        yield "POST", "/v1/load_lora_adapter", {"lora_name": "n", "lora_path": source}
    for name in ("nobody", "bad%20name", "a/../b", ".pool", "x" * 300, "good@1"):
        yield "PUT", f"/v1/adapters/{name}", {"source": ".pool/damaged"}
        yield "GET", f"/v1/adapters/{name}", None
        yield "DELETE", f"/v1/adapters/{name}", None
        yield "PUT", f"/v1/aliases/{name}", {"targets": [{"adapter": "nobody"}]}
        yield "POST", "/v1/unload_lora_adapter", {"lora_name": name}
        for verb in VERBS:
            yield "POST", f"/v1/adapters/{name}/{verb}", {"version": 1}


def test_no_error_of_the_management_says_where_the_server_keeps_things(live: LiveServer, tmp_path: Path) -> None:
    count = 0
    with httpx.Client(timeout=30) as client:
        for method, path, body in _bad_requests():
            answer = client.request(method, live.url + path, json=body)
            assert answer.status_code >= 400, (method, path, body, answer.text)
            assert answer.status_code != 500, (method, path, body, answer.text)
            assert str(tmp_path) not in answer.text, (method, path, body)
            count += 1
    assert count > 100


def test_a_relative_source_is_called_what_the_client_called_it(live: LiveServer) -> None:
    for source in ("../x", "a//b"):
        answer = httpx.put(f"{live.url}/v1/adapters/n", json={"source": source}, timeout=30)
        assert answer.json()["error"]["code"] == "bad_source"
        assert f"source '{source}' has an empty" in answer.json()["error"]["message"]
    added = httpx.put(f"{live.url}/v1/adapters/n", json={"source": ".pool/good"}, timeout=30)
    assert added.json()["origin"] == ".pool/good"


def test_what_the_engine_says_of_itself_stays_here(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    httpx.put(f"{live.url}/v1/adapters/known", json={"source": ".pool/good"}, timeout=30)

    async def fails(*_: object) -> None:
        raise EngineError("no /dev/shm/secret on gpu-7.internal")

    monkeypatch.setattr(live.engine, "load_adapter", fails)
    answer = httpx.post(f"{live.url}/v1/adapters/known/prefetch", headers={"x-request-id": "r1"}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "The engine failed. (request id r1)")


@pytest.fixture
def down(live: LiveServer, tmp_path: Path) -> LiveServer:
    """The same server after somebody put a directory in the place of its database."""
    httpx.put(f"{live.url}/v1/adapters/known", json={"source": ".pool/good"}, timeout=30)
    live.call(live.service.adapters.settle())
    live.service.adapters.registry.close()
    database = tmp_path / "data" / "livery.db"
    for file in database.parent.glob("livery.db*"):
        file.unlink()
    database.mkdir()
    return live


def test_a_registry_that_is_down_is_named_to_nobody(
    down: LiveServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat = {"model": "unseen", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    with caplog.at_level(logging.ERROR, "livery.api"):
        answers = [
            httpx.post(f"{down.url}/v1/chat/completions", json=chat, timeout=30),
            httpx.post(f"{down.url}/v1/chat/completions", json={**chat, "stream": True}, timeout=30),
            *(httpx.get(down.url + path, timeout=30) for path in ("/v1/models", "/v1/models/x", "/v1/adapters")),
            httpx.put(f"{down.url}/v1/adapters/n", json={"source": ".pool/good"}, timeout=30),
        ]
    for answer in answers:
        assert answer.json()["error"]["code"] in ("registry_unavailable", "registry_unreadable")
        assert answer.status_code in (500, 503)
        assert "livery.db" not in answer.text and str(tmp_path) not in answer.text
    assert "livery.db" in caplog.text, "the operator is told"


@pytest.mark.parametrize("kind", [registry.RegistryUnavailable, registry.RegistryUnreadable, registry.RegistryTooNew])
def test_what_the_database_says_of_itself_stays_here(kind: type[registry.RegistryError]) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "postgresql://livery@db.internal/livery refuses")
    answer = errors.describe(error)
    assert "db.internal" not in str(answer.body)
    assert answer.body["error"]["code"] == kind.code


def test_metrics_answer_while_the_registry_is_down(down: LiveServer) -> None:
    answer = httpx.get(f"{down.url}/metrics", timeout=30)
    assert answer.status_code == 200
    assert "vllm:num_requests_running" in answer.text
    assert "livery_adapters_registered" not in answer.text
    assert "lora_requests_info{" not in answer.text


def test_requests_that_come_together_share_the_room_there_is(serve: Serve, tmp_path: Path) -> None:
    server = serve(Setup(max_open=1), folder=tmp_path)
    make_adapter(server.adapter_root / ".pool" / "good", seed=1)
    httpx.put(f"{server.url}/v1/adapters/pirate", json={"source": ".pool/good"}, timeout=30)

    async def together() -> list[object]:
        jobs = [Job("pirate", [[1000]], Options(max_tokens=1), f"req_{number}") for number in range(3)]
        return list(await asyncio.gather(*map(server.service.open, jobs), return_exceptions=True))

    async def refused() -> None:
        await server.service.open(Job("nobody", [[1000]], Options(max_tokens=1), "req_x"))

    found = server.call(together())
    assert [isinstance(one, Overloaded) for one in found].count(False) == 1
    opened = next(one for one in found if not isinstance(one, Overloaded))
    server.call(_close(opened))
    for _ in range(2):  # what is refused gives its room back
        with pytest.raises(Exception, match="model_not_found"):
            server.call(refused())


async def _close(opened: Any) -> None:
    opened.generation.close()
