"""GET /v1/status over HTTP: what it says of the engine, of adapters and of requests, and to whom."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from livery.api import console
from livery.engine.fake import Behaviour


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_adapter(folder / "one", seed=1)
    make_adapter(folder / "two", seed=2, rank=4)
    return folder


@pytest.fixture
def live(serve: Serve, saved: Path, tmp_path: Path) -> LiveServer:
    shutil.copytree(saved, tmp_path / "adapters" / ".pool")
    return serve(folder=tmp_path)


def status(server: LiveServer, key: str = "", **params: Any) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx.get(f"{server.url}/v1/status", params=params, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def put(server: LiveServer, name: str, which: str, *, key: str = "none", **more: object) -> None:
    body, headers = {"source": f".pool/{which}", **more}, {"authorization": f"Bearer {key}"}
    answer = httpx.put(f"{server.url}/v1/adapters/{name}", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text


def ask(server: LiveServer, model: str, key: str = "none", tokens: int = 3) -> None:
    server.client(key).completions.create(model=model, prompt=[1000, 1001], max_tokens=tokens)


def row(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["adapters"]["data"] if one["name"] == name)


def test_says_what_is_served_and_how_it_does(live: LiveServer) -> None:
    put(live, "pirate", "one", pinned=True)
    put(live, "team/poet", "two")
    for _ in range(3):
        ask(live, "team/poet")
    ask(live, BASE)
    found = status(live)
    assert (found["base"]["name"], found["base"]["requests"]) == (BASE, 1)
    assert (found["engine"]["answers"], found["engine"]["device"], found["load"]["running"]) == (True, "cpu", 0)
    assert found["server"]["limits"] == {"max_rank": 8, "max_adapter_bytes": 2 << 30}
    assert found["memory"]["kv"]["total_tokens"] == 64 * 16
    assert sum(found["throughput"]["prompt_by_second"]) <= 8
    pirate, poet = row(found, "pirate"), row(found, "team/poet")
    assert (pirate["state"], pirate["tier"], pirate["rank"], pirate["pinned"]) == ("ready", "device", 2, True)
    assert (pirate["requests"], pirate["last_used_s"], pirate["ttft_p50_s"]) == (0, None, None)
    assert (poet["tier"], poet["rank"], poet["peft_type"], poet["version"]) == ("device", 4, "LORA", 1)
    assert (poet["requests"], poet["prompt_tokens"], poet["generated_tokens"], poet["tokens"]) == (3, 6, 9, 15)
    assert poet["bytes"] > 0
    assert 0 < poet["ttft_p50_s"] <= poet["ttft_p95_s"]
    assert poet["last_used_s"] >= 0
    assert found["caller"] == {
        "tenant": "default",
        "role": "admin",
        "keyed": False,
        "sees": "all",
        "may": {"manage": True, "pin": True},
    }


def test_follows_changes(live: LiveServer) -> None:
    assert status(live)["adapters"]["total"] == 0
    put(live, "pirate", "one")
    assert row(status(live), "pirate")["version"] == 1
    put(live, "pirate", "two")
    assert (row(status(live), "pirate")["version"], row(status(live), "pirate")["rank"]) == (2, 4)
    httpx.post(f"{live.url}/v1/adapters/pirate/rollback", timeout=30).raise_for_status()
    assert row(status(live), "pirate")["version"] == 1
    httpx.delete(f"{live.url}/v1/adapters/pirate", timeout=30).raise_for_status()
    assert status(live)["adapters"]["data"] == []


def test_pages_searches_and_sorts(live: LiveServer) -> None:
    for name, which in (("a", "one"), ("b", "two"), ("c/Pirate", "one")):
        put(live, name, which)
    ask(live, "b")
    names = [one["name"] for one in status(live)["adapters"]["data"]]
    assert names == ["a", "b", "c/Pirate"]
    page = status(live, offset=1, limit=1)["adapters"]
    assert ([one["name"] for one in page["data"]], page["total"], page["found"]) == (["b"], 3, 3)
    page = status(live, search="pir")["adapters"]
    assert ([one["name"] for one in page["data"]], page["total"], page["found"]) == (["c/Pirate"], 3, 1)
    for column, order, first in (("rank", "desc", "b"), ("name", "desc", "c/Pirate"), ("last_used_s", "desc", "b")):
        assert status(live, sort=column, order=order)["adapters"]["data"][0]["name"] == first
    assert status(live, limit=0)["adapters"]["data"] == []


def test_refuses_what_it_has_no_column_for(live: LiveServer) -> None:
    for params in ({"limit": 1001}, {"limit": -1}, {"sort": "secret"}, {"order": "up"}, {"search": "x" * 257}):
        answer = httpx.get(f"{live.url}/v1/status", params=params, timeout=30)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(params)))


def test_recent_requests_come_newest_first_and_say_nothing_of_their_content(live: LiveServer) -> None:
    put(live, "pirate", "one")
    live.client().completions.create(model="pirate", prompt="a secret word", max_tokens=2)
    httpx.post(f"{live.url}/v1/completions", json={"model": "nobody", "prompt": "another secret"}, timeout=30)
    found = status(live)
    missing, done = found["requests"]
    assert (missing["status"], missing["model"], missing["route"]) == (404, None, "/v1/completions")
    assert (done["status"], done["model"], done["outcome"], done["generated_tokens"]) == (200, "pirate", "length", 2)
    assert done["digest"] == row(found, "pirate")["digest"][:12]
    assert done["duration_s"] >= done["ttft_s"] > 0
    assert "secret" not in str(found)


def test_the_last_requests_are_kept_and_no_more(live: LiveServer) -> None:
    for _ in range(105):
        httpx.post(f"{live.url}/v1/completions", json={"model": "nobody", "prompt": "x"}, timeout=30)
    assert len(status(live)["requests"]) == 100


def test_nobody_empties_anothers_list_of_requests(serve: Serve) -> None:
    server = serve()
    keys = {tenant: server.make_key(tenant, role="owner") for tenant in ("acme", "busy")}

    def ask(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        body = {"model": "nobody", "prompt": "x"}
        return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=30).status_code

    def listed(tenant: str) -> int:
        headers = {"authorization": f"Bearer {keys[tenant]}"}
        return len(httpx.get(f"{server.url}/v1/status", headers=headers, timeout=30).json()["requests"])

    assert ask(keys["acme"]) == 404
    assert {ask("wrong") for _ in range(2)} == {401}
    lately = server.call(server.service.survey.lately(None))
    assert [one.account.partition("~")[0] for one in lately.recent] == ["acme"], "whose key is wrong is nobody"
    for _ in range(101):
        ask(keys["busy"])
    assert (listed("acme"), listed("busy")) == (1, 100)


def test_errors_show_with_their_adapter(serve: Serve, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "adapters" / ".pool")
    server = serve(Setup(behaviour=Behaviour(fail_after=1)), folder=tmp_path)
    put(server, "pirate", "one")
    answer = httpx.post(
        f"{server.url}/v1/completions", json={"model": "pirate", "prompt": [1000], "max_tokens": 3}, timeout=30
    )
    assert answer.status_code == 500
    error = row(status(server), "pirate")["error"]
    assert (error["code"], error["message"]) == ("request_failed", "the fake engine was told to fail")


def test_answers_what_is_known_while_the_engine_does_not(live: LiveServer) -> None:
    put(live, "pirate", "one")
    live.call(live.engine.die())
    found = status(live)
    assert (found["engine"]["answers"], found["memory"], found["load"]["running"]) == (False, None, None)
    assert row(found, "pirate")["state"] == "ready"


def test_tenants_see_their_own_adapters_and_not_what_others_do(serve: Serve, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "adapters" / ".pool")
    server = serve(Setup(api_key="sk-operator"), folder=tmp_path)
    keys = {"acme": server.make_key("acme", role="owner"), "bob": server.make_key("bob"), "operator": "sk-operator"}
    for name in ("acme/pirate", "bob/secret", "poet"):
        put(server, name, "one", key="sk-operator")
        ask(server, name, "sk-operator")
    seen = {who: {one["name"]: one for one in status(server, key)["adapters"]["data"]} for who, key in keys.items()}
    assert {who: sorted(rows) for who, rows in seen.items()} == {
        "acme": ["pirate", "poet"],
        "bob": ["poet", "secret"],
        "operator": ["acme/pirate", "bob/secret", "poet"],
    }
    assert [seen["acme"][name]["requests"] for name in ("pirate", "poet")] == [0, 0]  # the operator's weren't its own
    assert [seen["acme"][name]["own"] for name in ("pirate", "poet")] == [True, False]
    assert seen["operator"]["poet"]["requests"] == 1
    assert all("acme" not in str(status(server, key)["adapters"]) for who, key in keys.items() if who != "operator")


def test_how_busy_others_are_is_the_operators_to_know(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), api_key="sk-operator", keep_alive_s=0.05))
    keys = {"acme": server.make_key("acme", role="owner"), "bob": server.make_key("bob"), "operator": "sk-operator"}
    stream = server.client(keys["acme"]).completions.create(model=BASE, prompt=[3], max_tokens=9, stream=True)
    server.wait_until(lambda engine: engine.open_requests == 1)
    found = {who: status(server, key)["load"] for who, key in keys.items()}
    assert {who: load["open"] for who, load in found.items()} == {"acme": 1, "bob": 0, "operator": 1}
    assert [load["running"] for load in found.values()] == [1, 0, 1]
    for who, key in keys.items():
        answer = httpx.get(f"{server.url}/load", headers={"authorization": f"Bearer {key}"}, timeout=30)
        assert answer.json() == {"server_load": found[who]["open"]}
    server.step(100)
    stream.close()


def test_users_see_their_own_requests_owners_their_tenants(serve: Serve) -> None:
    server = serve(Setup(api_key="sk-operator"))
    user, colleague = server.make_key("acme"), server.make_key("acme")
    owner, other = server.make_key("acme", role="owner"), server.make_key("bob", role="owner")
    for key in (user, colleague, other):
        ask(server, BASE, key)
    seen = {key: len(status(server, key)["requests"]) for key in (user, owner, other, "sk-operator")}
    assert seen == {user: 1, owner: 2, other: 1, "sk-operator": 3}
    assert status(server, user)["caller"]["may"] == {"manage": False, "pin": False}
    assert status(server, owner)["caller"]["may"] == {"manage": True, "pin": False}
    assert status(server, "sk-operator")["caller"]["may"] == {"manage": True, "pin": True}


CLOSED = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@pytest.mark.parametrize("prefix", ["", "/models/livery"])
def test_the_console_is_a_page_and_its_parts_in_a_folder_below_any_prefix(serve: Serve, prefix: str) -> None:
    server = serve(Setup(api_key="sk-operator", root_path=prefix))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        moved = client.get(f"{prefix}/ui")
        assert (moved.status_code, moved.headers["location"]) == (307, "ui/")
        page = client.get(f"{prefix}/ui/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        parts = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        assert {"main.js", "base.css", "console.css", "mark.svg"} == set(parts)
        imported = re.findall(r'from "\./([a-z]+\.js)"', client.get(f"{prefix}/ui/main.js").text)
        for name in ["", *parts, *imported]:
            answer = client.get(f"{prefix}/ui/{name}")
            assert (answer.status_code, answer.headers["content-security-policy"]) == (200, CLOSED), name
            assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == (
                "nosniff",
                "no-referrer",
            )
            same = client.get(f"{prefix}/ui/{name}", headers={"if-none-match": answer.headers["etag"]})
            assert (same.status_code, same.content) == (304, b"")
            assert client.head(f"{prefix}/ui/{name}").status_code == 200
        for name in ("nowhere.js", "..%2fconsole.py", "%2e%2e%2fconsole.py", "/etc/hostname"):
            assert client.get(f"{prefix}/ui/{name}").status_code == 401


def test_nothing_in_the_console_is_inline_or_from_elsewhere() -> None:
    folder = Path(console.__file__).parent / "ui"
    page = (folder / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|https?://", page)
    for file in folder.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", file.read_text()
        )
