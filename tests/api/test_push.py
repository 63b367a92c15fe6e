"""New weights alone for an adapter that is served: checked, stored, active, and the old ones collected."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.live_server import LiveServer, Serve, Setup
from api.peft_files import damage_weights, make_adapter
from livery.api.answers import Adapter
from livery.engine.fake import Behaviour
from livery_adapters.manifest import read_manifest

RAW = {"content-type": "application/octet-stream"}
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for seed in range(6):
        make_adapter(folder / str(seed), seed=seed)
    return folder


@pytest.fixture
def live(serve: Serve, saved: Path) -> LiveServer:
    """A server with one uploaded adapter."""
    server = serve()
    upload(server, "policy", saved / "0")
    return server


def upload(server: LiveServer, name: str, folder: Path, **more: Any) -> dict[str, Any]:
    files = {part: (part, (folder / part).read_bytes()) for part in (CONFIG, WEIGHTS)}
    answer = httpx.post(f"{server.url}/v1/adapters/{name}/versions", files=files, timeout=30, **more)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def push(
    server: LiveServer, weights: Path | bytes, asked: str = "", name: str = "policy", **headers: str
) -> httpx.Response:
    content = weights if isinstance(weights, bytes) else (weights / WEIGHTS).read_bytes()
    url = f"{server.url}/v1/adapters/{name}/versions?{asked}"
    return httpx.post(url, content=content, headers={**RAW, **headers}, timeout=30)


def digest_of(folder: Path) -> str:
    return read_manifest(folder).digest


def served_by(server: LiveServer, model: str = "policy") -> Any:
    return server.client().completions.create(model=model, prompt=[1000], max_tokens=1)


def blobs(server: LiveServer) -> set[str]:
    found = server.management.library.store.digests()
    return set(found)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_weights_alone_become_the_next_version_under_the_same_configuration(live: LiveServer, saved: Path) -> None:
    answer = push(live, saved / "1")
    assert answer.status_code == 200, answer.text
    told, new = answer.json(), answer.json()["pushed"]
    assert Adapter.model_validate_json(answer.content, strict=True).pushed is not None, "it looks as described"
    assert (told["version"], told["generation"], told["source"]) == (2, 2, "upload")
    assert new["digest"] == told["digest"] == digest_of(saved / "1")
    assert (new["version"], new["active"], new["model"]) == (2, True, f"policy@{new['digest'][:12]}")
    assert list(new["seconds"]) == ["receive", "check", "prove", "sync", "record", "tell"]
    assert answer.headers["etag"] == '"2"'
    assert "modules_by_path" not in told["coverage"]
    stored = live.management.library.store.path(new["digest"])
    assert (stored / CONFIG).read_bytes() == (saved / "0" / CONFIG).read_bytes()
    assert served_by(live).system_fingerprint == new["system_fingerprint"]
    pinned = served_by(live, new["model"])
    assert (pinned.model, pinned.system_fingerprint) == (new["model"], new["system_fingerprint"])


@pytest.mark.parametrize("kind", ["application/safetensors", "Application/Octet-Stream; charset=binary", ""])
def test_bytes_are_known_by_their_type_or_by_having_none(live: LiveServer, saved: Path, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    data = (saved / "1" / WEIGHTS).read_bytes()
    answer = httpx.post(f"{live.url}/v1/adapters/policy/versions", content=data, headers=headers)
    assert answer.json()["pushed"]["digest"] == digest_of(saved / "1")


def test_another_type_is_told_what_is_taken(live: LiveServer, saved: Path) -> None:
    answer = push(live, saved / "1", **{"content-type": "application/x-www-form-urlencoded"})
    assert code_of(answer) == (400, "invalid_value")
    assert "application/octet-stream" in answer.text
    assert "adapter_config.json" in answer.text


def test_the_profile_goes_on_unless_another_one_is_given(live: LiveServer, saved: Path) -> None:
    profile = {"system_prompt": "You are a pirate.", "temperature": 1.5}
    base = f"{live.url}/v1/adapters/policy"
    assert httpx.put(f"{base}/profile", json={"profile": profile}).is_success
    assert push(live, saved / "1").json()["profile"] == {"temperature": 1.5}, "its texts are left out"
    assert httpx.get(f"{base}/profile").json()["profile"] == profile
    assert push(live, saved / "2", 'profile={"temperature":1}').is_success
    assert httpx.get(f"{base}/profile").json()["profile"] == {"temperature": 1}


def test_a_profile_changed_meanwhile_is_not_undone(live: LiveServer, saved: Path) -> None:
    """The weights are on their way when the profile changes: the push loses, and nothing of it stays."""

    def body() -> Any:
        data = (saved / "1" / WEIGHTS).read_bytes()
        yield data[:100]
        changed = httpx.put(f"{live.url}/v1/adapters/policy/profile", json={"profile": {"temperature": 1}})
        assert changed.is_success
        yield data[100:]

    answer = httpx.post(f"{live.url}/v1/adapters/policy/versions", content=body(), headers=RAW)
    assert code_of(answer) == (409, "profile_changed")
    assert "'policy'" in answer.text
    shown = httpx.get(f"{live.url}/v1/adapters/policy").json()
    assert (shown["version"], shown["profile"]) == (2, {"temperature": 1})
    assert push(live, saved / "1").json()["profile"] == {"temperature": 1}


def test_a_push_may_wait_to_be_activated(live: LiveServer, saved: Path) -> None:
    answer = push(live, saved / "1", "activate=false").json()
    assert (answer["version"], answer["digest"]) == (1, digest_of(saved / "0"))
    new = answer["pushed"]
    assert (new["version"], new["digest"], new["active"]) == (2, digest_of(saved / "1"), False)
    assert served_by(live).system_fingerprint != new["system_fingerprint"]
    chosen = httpx.post(f"{live.url}/v1/adapters/policy/activate", json={"version": new["version"]})
    assert chosen.json()["digest"] == new["digest"]


def test_an_old_version_that_comes_again_may_be_dropped_at_once(live: LiveServer, saved: Path) -> None:
    for seed in "12":
        push(live, saved / seed)
    again = push(live, saved / "0", "activate=false&keep=1").json()["pushed"]
    assert (again["version"], again["digest"], again["active"]) == (None, digest_of(saved / "0"), False)
    history = httpx.get(f"{live.url}/v1/adapters/policy/versions").json()["data"]
    assert [one["version"] for one in history] == [3]


def test_the_same_weights_again_change_nothing(live: LiveServer, saved: Path) -> None:
    first = push(live, saved / "1").json()
    again = push(live, saved / "1").json()
    assert (again["generation"], again["pushed"]["digest"]) == (2, first["pushed"]["digest"])


def test_compare_and_set_by_the_tag_of_an_answer(live: LiveServer, saved: Path) -> None:
    tag = httpx.get(f"{live.url}/v1/adapters/policy").headers["etag"]
    assert push(live, saved / "1", **{"if-match": tag}).headers["etag"] == '"2"'
    lost = push(live, saved / "2", **{"if-match": tag})
    assert code_of(lost) == (412, "generation_mismatch")
    assert "generation 2" in lost.text
    assert lost.headers["x-should-retry"] == "false"
    assert code_of(push(live, saved / "2", "expected_generation=1")) == (409, "generation_mismatch")
    for wrong in ("2", "*", '"x"', 'W/"2"'):
        assert code_of(push(live, saved / "2", **{"if-match": wrong})) == (400, "invalid_value")
    assert blobs(live) == {digest_of(saved / "0"), digest_of(saved / "1")}


def test_only_the_newest_versions_and_their_files_stay(live: LiveServer, saved: Path) -> None:
    for seed in "1234":
        assert push(live, saved / seed, "keep=2").is_success
    live.call(live.service.adapters.settle())
    history = httpx.get(f"{live.url}/v1/adapters/policy/versions").json()["data"]
    assert [one["version"] for one in history] == [5, 4]
    assert blobs(live) == {digest_of(saved / "4"), digest_of(saved / "3")}
    assert set(live.engine.loaded) == blobs(live) - {digest_of(saved / "3")}, "what no name stands for isn't in memory"
    httpx.post(f"{live.url}/v1/adapters/policy/pin")
    push(live, saved / "5", "keep=1")
    live.call(live.service.adapters.settle())
    assert blobs(live) == {digest_of(saved / "5")}, "also of a pinned name"


def test_the_files_of_a_running_request_stay_until_its_end(serve: Serve, saved: Path) -> None:
    server = serve(Setup(Behaviour(stepped=True)))
    upload(server, "policy", saved / "0")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            server.client().completions.create, model="policy", prompt=[1000], max_tokens=3, stream=True
        )
        server.wait_until(lambda engine: engine.open_requests == 1)
        server.step()
        stream = asked.result(30)
    assert push(server, saved / "1", "keep=1").is_success
    server.call(server.service.adapters.settle())
    assert blobs(server) == {digest_of(saved / "0"), digest_of(saved / "1")}
    server.step(8)
    told = {chunk.system_fingerprint for chunk in stream}
    assert len(told) == 1
    assert told.pop().endswith(digest_of(saved / "0")[:12])
    server.call(server.service.adapters.settle())
    assert blobs(server) == {digest_of(saved / "1")}


@pytest.mark.parametrize(
    ("spoil", "status", "code"),
    [
        (lambda folder: make_adapter(folder, rank=4), 422, "rank_mismatch"),
        (lambda folder: make_adapter(folder, target_modules=["k_proj"]), 422, "untargeted_tensor"),
        (lambda folder: make_adapter(folder, hidden=32), 422, "wrong_base"),
    ],
)
def test_weights_of_another_shape_are_refused_with_the_remedy(
    live: LiveServer, saved: Path, tmp_path: Path, spoil: Callable[[Path], Path], status: int, code: str
) -> None:
    answer = push(live, spoil(tmp_path / "other"))
    assert code_of(answer) == (status, code), answer.text
    assert "version 1, which is active" in answer.text
    assert "adapter_config.json" in answer.text
    nothing_changed(live, saved)


def test_what_is_no_file_of_tensors_is_refused(live: LiveServer, saved: Path, tmp_path: Path) -> None:
    whole = (saved / "1" / WEIGHTS).read_bytes()
    for body in (b"", b"{}", b"\x80\x04pickle", whole[: len(whole) // 2], whole + b"more"):
        answer = push(live, body)
        assert answer.status_code == 422, body[:10]
    nan = damage_weights(shutil.copytree(saved / "1", tmp_path / "nan"))
    assert code_of(push(live, nan)) == (422, "nonfinite_weights")
    assert code_of(push(live, whole, **{"content-encoding": "gzip"})) == (400, "invalid_value")
    nothing_changed(live, saved)


def test_a_body_over_the_limit_is_refused_by_what_it_announces(live: LiveServer, saved: Path) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = "POST /v1/adapters/policy/versions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n"
        head += "connection: close\r\n"
        connection.sendall(f"{head}content-type: application/octet-stream\r\n\r\n".encode())
        answer = connection.makefile("rb").read().decode()  # until the server closes: it reads no such body
    assert answer.startswith("HTTP/1.1 413")
    assert "adapter_model.safetensors is over the limit" in answer
    nothing_changed(live, saved)


def test_a_body_that_ends_early_leaves_nothing(live: LiveServer, saved: Path) -> None:
    data = (saved / "1" / WEIGHTS).read_bytes()
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/adapters/policy/versions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n"
        connection.sendall(f"{head}content-type: application/octet-stream\r\n\r\n".encode() + data[:-10])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096) == b""
    assert push(live, saved / "2").json()["version"] == 2, "the place and the number are free"
    incoming = live.management.library.store.root / "incoming"
    assert not [entry for entry in incoming.iterdir() if (entry / "files").is_dir()]


def test_without_a_version_to_follow_the_remedy_is_told(live: LiveServer, saved: Path) -> None:
    nobody = push(live, saved / "1", name="nobody")
    assert code_of(nobody) == (404, "unknown_adapter")
    assert "adapter_config.json" in nobody.text
    damaged = damage_weights(shutil.copytree(saved / "1", live.adapter_root / "bad"))
    assert not httpx.put(f"{live.url}/v1/adapters/aside", json={"source": damaged.name}).is_success
    httpx.put(f"{live.url}/v1/aliases/prod", json={"targets": [{"adapter": "policy", "weight": 1}]})
    assert code_of(push(live, saved / "1", name="prod"))[0] in (404, 409)
    files = {part: (part, (saved / "1" / part).read_bytes()) for part in (CONFIG, WEIGHTS)}
    httpx.post(f"{live.url}/v1/adapters/waiting/versions?activate=false", files=files).raise_for_status()
    assert code_of(push(live, saved / "2", name="waiting")) == (409, "no_active_version")
    prompt = {"source": "base", "profile": {"system_prompt": "Be brief."}}
    httpx.put(f"{live.url}/v1/adapters/brief", json=prompt).raise_for_status()
    assert code_of(push(live, saved / "2", name="brief")) == (409, "no_active_version")


def nothing_changed(live: LiveServer, saved: Path) -> None:
    shown = httpx.get(f"{live.url}/v1/adapters/policy").json()
    assert (shown["version"], shown["generation"], shown["error"]) == (1, 1, None)
    live.call(live.service.adapters.settle())
    assert blobs(live) == {digest_of(saved / "0")}
    assert set(live.engine.loaded) == blobs(live)
