"""Where adapters may be fetched from, by who asks: the server's credentials open to a tenant its own places alone."""

from __future__ import annotations

from pathlib import Path

from adapters.hub_server import REPO, HubServer
from api.live_server import Serve, Setup
from api.tenants import People, call, code_of

ALLOWED = ("hf://ours/", "hf://{tenant}/")
TENANT = REPO.partition("/")[0]  # whose repository it is


def test_a_tenant_fetches_from_its_own_places_and_the_operator_from_its_own(
    serve: Serve, hub: HubServer, tmp_path: Path
) -> None:
    server = serve(Setup(api_key="sk-operator", allow_source=ALLOWED), folder=tmp_path)
    owners = {tenant: server.make_key(tenant, role="owner") for tenant in (TENANT, "zeta")}
    who = People(server, {**owners, "operator": "sk-operator"})

    def put(key: str, source: str) -> tuple[int, str]:
        found = code_of(call(who, key, "PUT", "/v1/adapters/x", json={"source": source}))
        assert code_of(call(who, key, "POST", "/v1/adapters:check", json={"source": source})) == found
        return found

    refused = (403, "source_not_allowed")
    for key, source in (("zeta", f"hf://{REPO}"), (TENANT, "hf://ours/x"), ("operator", f"hf://{REPO}")):
        assert put(key, source) == refused, (key, source)
    assert hub.requests == []
    for key, source in ((TENANT, f"hf://{REPO}"), ("operator", "hf://ours/x")):
        assert put(key, source)[1] in ("source_not_found", "source_unreachable"), (key, source)
        assert hub.requests.pop()[0].startswith("/api/models/" + source.removeprefix("hf://"))
        hub.requests.clear()


def test_where_no_keys_are_everything_that_is_allowed_is_everybodys(
    serve: Serve, hub: HubServer, tmp_path: Path
) -> None:
    server = serve(Setup(allow_source=ALLOWED), folder=tmp_path)
    who = People(server, {"anybody": "none"})
    answer = call(who, "anybody", "PUT", "/v1/adapters/x", json={"source": "hf://ours/x"})
    assert answer.json()["error"]["code"] in ("source_not_found", "source_unreachable")
    assert hub.requests
