"""The admin API: who gets in, what its verbs do, and that what they do holds at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from api.live_server import LiveServer, Serve, Setup
from api.peft_files import make_adapter
from livery.api import admin_bodies
from livery.api.app import ADMIN_ROUTERS

ADMIN, STATIC, SCRAPER = "sk-admin-1", "sk-static-1", "sk-scraper-1"
API = "/admin/v1"
ROUTES = {
    *(("GET", f"{API}/{what}") for what in ("tenants", "keys")),
    *(("POST", f"{API}/{what}") for what in ("tenants", "keys")),
    *((method, f"{API}/tenants/{{name}}") for method in ("GET", "PATCH", "DELETE")),
    ("DELETE", f"{API}/keys/{{key}}"),
    ("POST", f"{API}/keys/{{key}}/rotate"),
    ("GET", f"{API}/usage"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("HEAD", "/openapi.json"),
}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}".strip()}


@pytest.fixture(scope="module")
def live(module_serve: Serve) -> LiveServer:
    return module_serve(Setup(api_key=STATIC, metrics_key=SCRAPER, admin=True, admin_key=ADMIN))


@pytest.fixture
def client(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.admin_url, headers=bearer(ADMIN), timeout=30) as client:
        yield client


def code(answer: httpx.Response) -> Any:
    return answer.json()["error"]["code"]


def test_every_admin_route_is_an_admins(live: LiveServer, client: httpx.Client) -> None:
    there = [route for router, _ in ADMIN_ROUTERS for route in router.routes]
    there += [route for route in live.admin_app.routes if isinstance(route, Route)]
    found = {(method, route.path) for route in there if isinstance(route, Route) for method in route.methods or ()}
    assert found == ROUTES
    revoked, user = live.make_key("walk"), live.make_key("walk")
    live.tenants.revoke_key(revoked[3:11])
    live.call(live.keys.refresh())
    owner, stored = live.make_key("walk", role="owner"), live.make_key("default", role="admin")
    asked = [*sorted(found), ("GET", "/nowhere"), ("PUT", f"{API}/keys"), ("GET", "/health"), ("GET", "/v1/models")]
    wrong = set()
    for method, path in asked:
        for key in ("", "nope", revoked, "x" * 8_000, "sk-static-"):
            answer = client.request(method, path, headers=bearer(key))
            assert answer.status_code == 401, (method, path)
            wrong.add(b"" if method == "HEAD" else answer.content)
        for key in (user, owner):
            answer = client.request(method, path, headers=bearer(key))
            assert answer.status_code == 403, (method, path)
            assert method == "HEAD" or code(answer) == "role_not_allowed"
        scraped = client.request(method, path, headers=bearer(SCRAPER))
        assert scraped.status_code == (200 if path == "/metrics" else 401)
        for key in (ADMIN, stored, STATIC):
            answer = client.request(method, path, headers=bearer(key), json={} if method == "POST" else None)
            assert answer.status_code not in (401, 403, 500), (method, path, answer.text)
    assert len(wrong) == 2  # HEAD has no body
    # From elsewhere, and for pages of other origins, only keys that say who sends them.
    for headers in ({"x-forwarded-for": "10.0.0.9"}, {"host": "evil.example"}, {"origin": "https://evil.example"}):
        assert client.get(f"{API}/keys", headers={**bearer(STATIC), **headers}).status_code == 403
        assert client.get(f"{API}/keys", headers={**bearer(stored), **headers}).status_code == 200


def test_the_admin_key_opens_nothing_of_the_public_api(live: LiveServer) -> None:
    assert httpx.get(f"{live.url}/v1/models", headers=bearer(ADMIN)).status_code == 401
    assert httpx.get(f"{live.url}{API}/keys", headers=bearer(STATIC)).status_code == 404


def test_the_descriptions_of_the_two_are_apart(live: LiveServer, client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {path for _, path in ROUTES} - {"/openapi.json"}
    public = httpx.get(f"{live.url}/openapi.json", headers=bearer(STATIC)).text
    assert "/admin/" not in public
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            success = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
            (content, *_) = success["content"].values()
            assert content["schema"], f"{method} {path}"


def test_a_tenants_life(live: LiveServer, client: httpx.Client) -> None:
    made = client.post(f"{API}/tenants", json={"name": "acme", "weight": 2, "limits": {"n": 4}})
    assert made.status_code == 200
    view = admin_bodies.TenantView.model_validate_json(made.content, strict=True)
    assert (view.name, view.weight, view.limits, view.disabled) == ("acme", 2.0, {"n": 4}, False)
    assert client.get(f"{API}/tenants/acme").json() == made.json()
    assert (client.post(f"{API}/tenants", json={"name": "acme"}).status_code) == 409
    changed = client.patch(f"{API}/tenants/acme", json={"limits": {"n": None, "versions": 2}, "disabled": True})
    assert changed.json() == {**made.json(), "limits": {"versions": 2}, "disabled": True}
    listed = admin_bodies.TenantList.model_validate_json(client.get(f"{API}/tenants").content, strict=True)
    assert {"acme", "default"} <= {tenant.name for tenant in listed.data}
    assert client.delete(f"{API}/tenants/acme").json() == {"name": "acme", "deleted": True}
    for method in ("GET", "PATCH", "DELETE"):
        answer = client.request(method, f"{API}/tenants/acme", json={} if method == "PATCH" else None)
        assert (answer.status_code, code(answer)) == (404, "unknown_tenant")


def test_a_keys_life_holds_at_once(live: LiveServer, client: httpx.Client) -> None:
    asked = {"tenant": "keyed", "role": "owner", "allow": ["own", "base"], "limits": {"n": 2}, "label": "CI"}
    made = client.post(f"{API}/keys", json={**asked, "expires": "30d"})
    assert made.status_code == 200
    new = admin_bodies.NewKey.model_validate_json(made.content, strict=True)
    assert new.tenant_created
    assert new.expires is not None
    assert new.expires - new.created == pytest.approx(30 * 86400, abs=5)

    def opens(key: str) -> bool:
        return httpx.get(f"{live.url}/v1/models", headers=bearer(key)).status_code == 200

    assert opens(new.key)
    rotated = client.post(f"{API}/keys/{new.id}/rotate", json={"grace_s": 60})
    second = admin_bodies.RotatedKey.model_validate_json(rotated.content, strict=True)
    assert (second.replaces, second.role, second.allow, second.limits) == (new.id, "owner", ["own", "base"], {"n": 2})
    assert opens(new.key)
    assert opens(second.key)
    third = client.post(f"{API}/keys/{second.id}/rotate").json()
    assert not opens(second.key)
    assert opens(third["key"])
    assert client.delete(f"{API}/keys/{third['id']}").json()["state"] == "revoked"
    assert not opens(third["key"])
    answer = client.post(f"{API}/keys/{third['id']}/rotate")
    assert (answer.status_code, code(answer)) == (409, "key_over")
    listed = client.get(f"{API}/keys", params={"tenant": "keyed"})
    keys = admin_bodies.KeyList.model_validate_json(listed.content, strict=True).data
    assert [key.state for key in keys] == ["valid", "revoked", "revoked"]
    for secret in (new.key, second.key, third["key"]):
        assert secret[12:] not in listed.text
    assert "digest" not in listed.text
    live.tenants.update_tenant("keyed", disabled=True)
    live.call(live.keys.refresh())
    assert not opens(new.key)


def test_a_tenant_never_owns_what_was_there_before(serve: Serve, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapters" / "sql")
    server = serve(Setup(admin=True), folder=tmp_path)
    assert httpx.put(f"{server.url}/v1/adapters/acme/sql", json={"source": "sql"}).status_code == 200
    with httpx.Client(base_url=server.admin_url) as client:
        for path, body in (("tenants", {"name": "acme"}), ("keys", {"tenant": "acme"})):
            answer = client.post(f"{API}/{path}", json=body)
            assert (answer.status_code, code(answer)) == (409, "tenant_in_use")
            assert "acme/sql" in answer.json()["error"]["message"]
        assert client.post(f"{API}/tenants", json={"name": "acm"}).status_code == 200


def test_a_tenant_is_deleted_with_what_others_shared_with_it(serve: Serve, tmp_path: Path) -> None:
    server = serve(Setup(admin=True), folder=tmp_path)
    parrot = make_adapter(tmp_path / "parrot")
    with httpx.Client(base_url=server.admin_url) as client:
        for name in ("giver", "taker"):
            assert client.post(f"{API}/tenants", json={"name": name}).status_code == 200
        made = httpx.put(f"{server.url}/v1/adapters/giver/sql", json={"source": str(parrot)})
        assert (made.status_code, code(made)) == (403, "source_not_allowed")
        make_adapter(tmp_path / "adapters" / ".pool")
        assert httpx.put(f"{server.url}/v1/adapters/giver/sql", json={"source": ".pool"}).json()["owner"] == "giver"
        shared = httpx.post(f"{server.url}/v1/adapters/giver/sql/share", json={"tenant": "taker"})
        assert shared.json() == {"name": "giver/sql", "shared_with": ["taker"]}
        answer = client.delete(f"{API}/tenants/giver")
        assert (answer.status_code, code(answer)) == (409, "tenant_in_use")
        assert client.delete(f"{API}/tenants/taker").status_code == 200
        assert client.post(f"{API}/tenants", json={"name": "taker"}).status_code == 200
    assert httpx.get(f"{server.url}/v1/adapters/giver/sql").json()["shared_with"] == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tenants", {}, "name"),
        ("tenants", {"name": "Acme"}, "name"),
        ("tenants", {"name": "a\r\nx-injected: 1"}, "name"),
        ("tenants", {"name": "a" * 300}, "name"),
        ("tenants", {"name": "acme", "weight": 0}, "weight"),
        ("tenants", {"name": "acme", "weight": "heavy"}, "weight"),
        ("tenants", {"name": "acme", "limits": {"speed": 1}}, "limits"),
        ("tenants", {"name": "acme", "limits": {"n": -1}}, "limits.n"),
        ("tenants", {"name": "acme", "limits": {"n": 1e400}}, "limits.n"),
        ("tenants", {"name": "acme", "limits": {str(number): 1 for number in range(100)}}, "limits"),
        ("tenants", {"name": "acme", "colour": "red"}, "colour"),
        ("keys", {}, "tenant"),
        ("keys", {"tenant": "acme", "role": "root"}, "role"),
        ("keys", {"tenant": "acme", "role": "admin"}, "role"),
        ("keys", {"tenant": "acme", "allow": []}, "allow"),
        ("keys", {"tenant": "acme", "allow": ["x"] * 65}, "allow"),
        ("keys", {"tenant": "acme", "allow": ["../x"]}, "allow"),
        ("keys", {"tenant": "acme", "label": "\x1b[31mred"}, "label"),
        ("keys", {"tenant": "acme", "label": "\ud800"}, "label"),
        ("keys", {"tenant": "acme", "expires": "yesterday"}, "expires"),
        ("keys", {"tenant": "acme", "expires": "1999-01-01"}, "expires"),
        ("keys/aaaaaaaa/rotate", {"grace_s": -1}, "grace_s"),
    ],
    ids=repr,
)
def test_wrong_fields_are_named(client: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    content = json.dumps(body)  # also what no client of this kind would send: halves of characters, infinity
    before = client.get(f"{API}/tenants").json()
    answer = client.post(f"{API}/{path}", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert client.get(f"{API}/tenants").json() == before


@pytest.mark.parametrize("name", ["nobody", "%00", "..%2f", "x" * 2000, "%ED%A0%80", "a%0Ab"])
def test_what_is_not_there(client: httpx.Client, name: str) -> None:
    for method, path in (("GET", f"tenants/{name}"), ("DELETE", f"keys/{name}"), ("POST", f"keys/{name}/rotate")):
        answer = client.request(method, f"{API}/{path}")
        assert answer.status_code == 404, answer.text
        assert len(answer.text) < 1000


def test_series_are_shown_there_too(client: httpx.Client) -> None:
    assert "livery_" in client.get("/metrics").text


def test_without_any_key_the_admin_api_is_for_this_machine(serve: Serve) -> None:
    server = serve(Setup(admin=True))
    with httpx.Client(base_url=server.admin_url) as client:
        assert client.get(f"{API}/tenants").status_code == 200
        for headers in ({"x-forwarded-for": "127.0.0.1"}, {"host": "evil.example"}, {"origin": "https://evil.example"}):
            answer = client.get(f"{API}/tenants", headers=headers)
            assert (answer.status_code, code(answer)) == (403, "loopback_only")
        assert client.post(f"{API}/keys", json={"tenant": "acme"}).status_code == 200
        assert client.get(f"{API}/tenants").status_code == 401  # the first key closes it


def test_lists_come_in_pages(live: LiveServer, client: httpx.Client) -> None:
    for number in range(3):
        live.make_key(f"page-{number}")
    for path, name in ((f"{API}/keys", "id"), (f"{API}/tenants", "name")):
        whole = [one[name] for one in client.get(path).json()["data"]]
        found, after = [], ""
        while after is not None:
            page = client.get(path, params={"after": after, "limit": 2}).json()
            found += [one[name] for one in page["data"]]
            after = page["next_after"]
        assert found == whole
        assert client.get(path, params={"limit": 1001}).status_code == 400
    assert client.get(f"{API}/keys", params={"after": "nobody77"}).status_code == 404
    assert client.get(f"{API}/tenants", params={"after": "No\0"}).status_code == 400
