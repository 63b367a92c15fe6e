"""Adapters managed over HTTP: added, replaced, rolled back, shared out, composed, deleted; nothing half done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup, saying
from api.peft_files import damage_weights, make_adapter
from livery.text import Tokenizer
from livery.under_way import LONGEST_PAUSE_S, SHORTEST_PAUSE_S, pauses
from livery_adapters.manifest import read_manifest


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_adapter(folder / "one", seed=1)
    make_adapter(folder / "two", seed=2, rank=4)
    return folder


@pytest.fixture
def live(serve: Serve, saved: Path, tmp_path: Path) -> LiveServer:
    """A server with two adapters to add from its folder, which are not served themselves."""
    shutil.copytree(saved, tmp_path / "adapters" / ".pool")
    return serve(folder=tmp_path)


def digest_of(folder: Path) -> str:
    return read_manifest(folder).digest


def call(server: LiveServer, method: str, path: str, **more: Any) -> httpx.Response:
    return httpx.request(method, f"{server.url}{path}", timeout=30, **more)


def put(server: LiveServer, name: str, which: str, **more: object) -> httpx.Response:
    return call(server, "PUT", f"/v1/adapters/{name}", json={"source": f".pool/{which}", **more})


def files(folder: Path) -> dict[str, tuple[str, bytes]]:
    names = ("adapter_config.json", "adapter_model.safetensors")
    return {name: (name, (folder / name).read_bytes()) for name in names}


def served_by(server: LiveServer, model: str, **more: Any) -> str:
    raw = server.client().completions.with_raw_response.create(model=model, prompt=[1000], max_tokens=1, **more)
    return raw.headers["x-livery-adapter"]


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_put_adds_reports_and_is_idempotent_by_content(live: LiveServer, saved: Path) -> None:
    answer = put(live, "team/pirate", "one", expected_generation=0)
    assert answer.status_code == 200
    added = answer.json()
    assert (added["state"], added["generation"], added["source"], added["version"]) == ("ready", 1, "api", 1)
    assert added["digest"] == digest_of(saved / "one")
    assert added["coverage"]["ranks"] == [2]
    assert str(live.adapter_root) not in answer.text
    assert put(live, "team/pirate", "one").json()["generation"] == 1
    assert code_of(put(live, "team/pirate", "two", expected_generation=0)) == (409, "generation_mismatch")
    assert put(live, "team/pirate", "two", expected_generation=1).json()["version"] == 2
    assert served_by(live, "team/pirate").startswith("team/pirate@" + digest_of(saved / "two")[:12])
    shown = call(live, "GET", "/v1/adapters/team/pirate").json()
    assert (shown["generation"], shown["version"]) == (2, 2)


def test_versions_activate_and_roll_back(live: LiveServer, saved: Path) -> None:
    for which in ("one", "two"):
        put(live, "pirate", which)
    history = call(live, "GET", "/v1/adapters/pirate/versions").json()["data"]
    assert [(version["version"], version["active"]) for version in history] == [(2, True), (1, False)]
    first = digest_of(saved / "one")
    assert call(live, "POST", "/v1/adapters/pirate/rollback").json()["digest"] == first
    assert served_by(live, "pirate") == f"pirate@{first[:12]}"
    assert call(live, "POST", "/v1/adapters/pirate/activate", json={"version": 2}).json()["version"] == 2
    assert served_by(live, "pirate@1") == f"pirate@{first[:12]}"
    missing = call(live, "POST", "/v1/adapters/pirate/activate", json={"version": 7})
    assert code_of(missing) == (404, "unknown_version")
    put(live, "other", "one")
    assert code_of(call(live, "POST", "/v1/adapters/other/rollback")) == (409, "nothing_to_roll_back")


def test_two_files_are_uploaded_as_they_are(live: LiveServer, saved: Path) -> None:
    answer = call(live, "POST", "/v1/adapters/mine/versions", files=files(saved / "one"))
    assert (answer.status_code, answer.json()["source"]) == (200, "upload")
    assert answer.json()["digest"] == digest_of(saved / "one")
    aside = call(live, "POST", "/v1/adapters/mine/versions?activate=false", files=files(saved / "two"))
    assert aside.json()["version"] == 1
    pages = [call(live, "GET", f"/v1/adapters/mine/versions?{asked}").json() for asked in ("", "limit=1", "after=2")]
    assert [[one["version"] for one in page["data"]] for page in pages] == [[2, 1], [2], [1]]
    assert [(page["next_after"], page["has_more"]) for page in pages] == [(None, False), (2, True), (None, False)]


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ({"adapter_config.json": b"{}"}, 422, "missing_weights"),
        ({"../../etc/passwd": b"x"}, 422, "unexpected_file"),
        ({"adapter_model.bin": b"x"}, 422, "unexpected_file"),
        ({"adapter_config.json": b"x" * (2 << 20)}, 413, "too_large"),
    ],
)
def test_uploads_of_anything_else_are_refused(
    live: LiveServer, parts: dict[str, bytes], status: int, code: str
) -> None:
    answer = call(
        live, "POST", "/v1/adapters/mine/versions", files={name: (name, data) for name, data in parts.items()}
    )
    assert code_of(answer) == (status, code)
    assert call(live, "GET", "/v1/adapters").json()["data"] == []


def test_broken_multipart_is_told_what_is_expected(live: LiveServer) -> None:
    for kind, body in (
        ("multipart/form-data; boundary=x", b"--x\r\nno header at all"),
        ("multipart/form-data", b"--x--"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\ncontent-disposition: form-data; name=adapter_config.json\r\n\r\n{",
        ),
    ):
        answer = call(live, "POST", "/v1/adapters/mine/versions", content=body, headers={"content-type": kind})
        assert answer.status_code == 400, body
        assert answer.json()["error"]["code"] == "invalid_value"
    plain = call(live, "POST", "/v1/adapters/mine/versions", json={"source": "x"})
    assert plain.status_code == 400


def test_a_dry_run_reports_and_keeps_nothing(live: LiveServer, saved: Path) -> None:
    report = call(live, "POST", "/v1/adapters:check", json={"source": ".pool/one"}).json()
    assert report["coverage"]["digest"] == digest_of(saved / "one")
    report = call(live, "POST", "/v1/adapters:check", files=files(saved / "two")).json()
    assert report["coverage"]["ranks"] == [4]
    assert call(live, "GET", "/v1/adapters").json()["data"] == []
    live.call(live.service.adapters.settle())
    assert live.engine.loaded == {}
    assert code_of(call(live, "POST", "/v1/adapters:check", json={"sauce": "x"})) == (400, "missing_required_parameter")
    assert code_of(call(live, "POST", "/v1/adapters:check", content=b"{")) == (400, "invalid_value")


def test_sources_the_operator_did_not_allow_are_refused(live: LiveServer) -> None:
    for source, status, code in (
        ("/etc", 403, "source_not_allowed"),
        ("hf://org/name", 403, "source_not_allowed"),
        ("s3://bucket/prefix", 403, "source_not_allowed"),
        ("../outside", 400, "bad_source"),
        ("http://169.254.169.254/latest", 400, "bad_source"),
    ):
        answer = call(live, "PUT", "/v1/adapters/evil", json={"source": source})
        assert code_of(answer) == (status, code), source


def test_a_bad_adapter_has_its_own_code_and_leaves_the_old_one(live: LiveServer, saved: Path) -> None:
    put(live, "pirate", "one")
    damage_weights(live.adapter_root / ".pool" / "two")
    assert code_of(put(live, "pirate", "two")) == (422, "nonfinite_weights")
    assert served_by(live, "pirate") == f"pirate@{digest_of(saved / 'one')[:12]}"
    live.call(live.service.adapters.settle())
    assert live.management.library.store.digests() == [digest_of(saved / "one")]


def test_aliases_share_out_and_are_listed_as_models(live: LiveServer) -> None:
    put(live, "stable", "one")
    put(live, "canary", "two")
    body = {"targets": [{"adapter": "stable", "weight": 90}, {"adapter": "canary", "weight": 10}], "sticky": "user"}
    alias = call(live, "PUT", "/v1/aliases/prod", json=body).json()
    assert [target["adapter"] for target in alias["targets"]] == ["stable", "canary"]
    assert {model.id for model in live.client().models.list()} == {BASE, "canary", "prod", "stable"}
    names = {served_by(live, "prod", user=f"user-{number}").partition("@")[0] for number in range(60)}
    assert names == {"stable", "canary"}
    assert len({served_by(live, "prod", user="ann") for _ in range(10)}) == 1
    assert code_of(put(live, "prod", "one")) == (409, "name_taken")
    body = {"targets": [{"adapter": "nobody"}]}
    assert code_of(call(live, "PUT", "/v1/aliases/x", json=body)) == (400, "invalid_alias")
    assert call(live, "GET", "/v1/aliases").json()["data"][0]["name"] == "prod"
    assert call(live, "DELETE", "/v1/aliases/prod").status_code == 200
    assert code_of(call(live, "GET", "/v1/aliases/prod")) == (404, "unknown_alias")


def test_a_composition_answers_under_its_own_name(live: LiveServer) -> None:
    put(live, "a", "one")
    put(live, "b", "two")
    served = served_by(live, "a+0.5*b")
    assert served.startswith("a+0.5*b@")
    refs = [request.adapter for request in live.engine.requests if request.adapter]
    assert sorted(part.weight for part in refs[-1].parts) == [0.5, 1.0]
    with pytest.raises(openai.BadRequestError) as caught:
        served_by(live, "a+*b")
    assert caught.value.code == "bad_composition"
    with pytest.raises(openai.NotFoundError):
        served_by(live, "a+nobody")


def test_loraxs_adapter_id_names_the_adapter(live: LiveServer) -> None:
    put(live, "pirate", "one")
    assert served_by(live, BASE, extra_body={"adapter_id": "pirate"}).startswith("pirate@")


def test_a_profile_fills_in_what_requests_leave_out(live: LiveServer, saved: Path) -> None:
    put(live, "plain", "one")
    added = put(live, "calm", "one", profile={"temperature": 0.0, "max_tokens": 3}).json()
    assert added["profile"] == {"temperature": 0.0, "max_tokens": 3}
    assert added["digest"] != digest_of(saved / "one"), "the version says all that an answer depends on"
    for name, temperature, tokens in (("plain", 1.0, 16), ("calm", 0.0, 3)):
        answer = live.client().completions.create(model=name, prompt=[1000])
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens
        assert live.engine.requests[-1].sampling.temperature == temperature
    live.client().completions.create(model="calm", prompt=[1000], temperature=0.5, max_tokens=1)
    assert live.engine.requests[-1].sampling.temperature == 0.5
    assert set(live.engine.loaded) == {digest_of(saved / "one")}, "the weights are loaded once"
    assert code_of(put(live, "calm", "one", profile={"temperature": 9})) == (400, "invalid_value")
    upload = {"params": {"profile": '{"top_p": 0.5}'}, "files": files(saved / "two")}
    assert call(live, "POST", "/v1/adapters/sent/versions", **upload).json()["profile"] == {"top_p": 0.5}
    upload["params"] = {"profile": '{"top_p": 5}'}
    assert code_of(call(live, "POST", "/v1/adapters/sent/versions", **upload)) == (400, "invalid_value")


def test_deleting_drains(serve: Serve, tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "adapters" / ".pool")
    server = serve(Setup(behaviour=saying(tokenizer, "one two", stepped=True)), folder=tmp_path)
    put(server, "pirate", "one")
    body = {"model": "pirate", "prompt": [1000], "max_tokens": 2, "stream": True}
    server.step()
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        gone = call(server, "DELETE", "/v1/adapters/pirate?drain=0.01")
        assert (gone.status_code, gone.json()) == (202, {"name": "pirate", "state": "draining", "requests": 1})
        with pytest.raises(openai.NotFoundError):
            server.client().completions.create(model="pirate", prompt=[1000])
        again = put(server, "pirate", "two")
        assert again.json()["digest"] == digest_of(saved / "two")
        server.step(1)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    gone = call(server, "DELETE", "/v1/adapters/pirate")
    assert (gone.status_code, gone.json()["state"]) == (200, "retired")
    server.call(server.service.adapters.settle())
    assert server.engine.loaded == {}
    assert server.management.library.store.digests() == []
    assert code_of(call(server, "DELETE", "/v1/adapters/pirate")) == (404, "unknown_adapter")


def test_who_waits_for_requests_to_end_asks_rarely() -> None:
    """Each look asks every process of the server."""
    assert list(pauses(0.0)) == []
    assert list(pauses(0.01)) == [0.01]
    found = list(pauses(600.0))
    assert sum(found) == pytest.approx(600.0)
    assert found[0] == SHORTEST_PAUSE_S and max(found) == LONGEST_PAUSE_S and len(found) < 620


def test_openais_client_deletes_a_model(live: LiveServer) -> None:
    put(live, "pirate", "one")
    assert live.client().models.delete("pirate").deleted is True
    with pytest.raises(openai.NotFoundError):
        live.client().models.retrieve("pirate")


def test_pinning_and_prefetching(live: LiveServer, saved: Path) -> None:
    put(live, "pirate", "one")
    assert call(live, "POST", "/v1/adapters/pirate/pin").json()["pinned"] is True
    assert call(live, "POST", "/v1/adapters/pirate/prefetch").json()["resident"] is True
    assert call(live, "POST", "/v1/adapters/pirate/unpin").json()["pinned"] is False
    assert code_of(call(live, "POST", "/v1/adapters/nobody/pin")) == (404, "unknown_adapter")


def test_lists_come_in_pages(live: LiveServer) -> None:
    for number in range(5):
        put(live, f"adapter-{number}", "one")
    first = call(live, "GET", "/v1/adapters?limit=2").json()
    assert [shown["name"] for shown in first["data"]] == ["adapter-0", "adapter-1"]
    assert first["has_more"] is True
    rest = call(live, "GET", f"/v1/adapters?limit=10&after={first['next_after']}").json()
    assert [shown["name"] for shown in rest["data"]] == ["adapter-2", "adapter-3", "adapter-4"]
    assert (rest["has_more"], rest["next_after"]) == (False, None)
    found = call(live, "GET", "/v1/adapters?search=R-3").json()["data"]
    assert [shown["name"] for shown in found] == ["adapter-3"]
    assert code_of(call(live, "GET", "/v1/adapters?limit=0")) == (400, "invalid_value")
    unknown = call(live, "GET", "/v1/adapters?state=foo")
    assert unknown.status_code == 400 and "ready" in unknown.json()["error"]["message"]


def test_management_from_elsewhere_is_refused_for_every_verb(live: LiveServer) -> None:
    put(live, "pirate", "one")
    elsewhere = {"host": "example.com"}
    for method, path in (
        ("PUT", "/v1/adapters/x"),
        ("DELETE", "/v1/adapters/pirate"),
        ("DELETE", "/v1/models/pirate"),
        ("POST", "/v1/adapters/pirate/rollback"),
        ("POST", "/v1/adapters:check"),
        ("PUT", "/v1/aliases/x"),
        ("DELETE", "/v1/aliases/x"),
    ):
        assert code_of(call(live, method, path, headers=elsewhere, json={})) == (403, "loopback_only"), path
    assert served_by(live, "pirate").startswith("pirate@")


def test_files_lost_from_the_data_folder_are_named(live: LiveServer, tmp_path: Path) -> None:
    digest = put(live, "pirate", "one").json()["digest"]
    blobs = [path for path in (tmp_path / "data").rglob(f"*{digest}*") if path.is_dir()]
    assert blobs
    for blob in blobs:
        shutil.rmtree(blob)
    body = {"model": "pirate", "prompt": [1000], "max_tokens": 1}
    answer = call(live, "POST", "/v1/completions", json=body)
    assert code_of(answer) == (400, "adapter_load_failed")
    assert "add it again" in answer.json()["error"]["message"]
