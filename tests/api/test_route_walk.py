"""Every route there is, called by everybody: nothing opens that isn't said here to open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from api.live_server import LiveServer, Serve, Setup
from livery.api import console
from livery.api.app import ROUTERS

STATIC, SCRAPER = "sk-static-1", "sk-scraper-1"
# Who may call what, written down a second time: a route that isn't here fails the first test.
PARTS = sorted(route.path for route in console.router.routes if isinstance(route, Route) and "GET" in route.methods)
ANYBODY = ["GET|HEAD /health", "GET|HEAD /ready", "GET|HEAD|POST /ping", *(f"GET|HEAD {path}" for path in PARTS)]
ANY_KEY = [
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/score",
    "POST /score",
    "POST /classify",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "GET /v1/models",
    "GET /v1/models/{model:path}",
    "POST /tokenize",
    "POST /detokenize",
    "GET /tokenizer_info",
    "GET /load",
    "GET /v1/status",
    "GET /v1/usage",
    "GET /version",
    "GET|HEAD /openapi.json",
]
VERBS = ("activate", "rollback", "prefetch", "share", "unshare")
OWNERS = [
    "GET /v1/adapters",
    "POST /v1/adapters:check",
    "GET|PUT|DELETE /v1/adapters/{name:path}",
    "GET|POST /v1/adapters/{name:path}/versions",
    "GET|PUT /v1/adapters/{name:path}/profile",
    *(f"POST /v1/adapters/{{name:path}}/{verb}" for verb in VERBS),
    "GET /v1/aliases",
    "GET|PUT|DELETE /v1/aliases/{name:path}",
    "DELETE /v1/models/{model:path}",
    "POST /v1/unload_lora_adapter",
]
OPERATORS = [
    "POST /v1/load_lora_adapter",
    *(f"POST /v1/adapters/{{name:path}}/{verb}" for verb in ("pin", "unpin")),
]
SCRAPERS = ["GET /metrics"]


def spread(lines: list[str]) -> set[tuple[str, str]]:
    return {(method, path) for line in lines for methods, path in [line.split()] for method in methods.split("|")}


WHO = {
    "anybody": spread(ANYBODY),
    "any key": spread(ANY_KEY),
    "owners": spread(OWNERS),
    "operators": spread(OPERATORS),
    "scrapers": spread(SCRAPERS),
}
# Differ from answer to answer, whatever is asked.
VARYING = ("x-request-id", "request-id", "date")


@dataclass(frozen=True)
class Callers:
    """One server, and keys of every kind for it."""

    server: LiveServer
    wrong: dict[str, dict[str, str]]
    right: dict[str, dict[str, str]]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}".strip()}


@pytest.fixture(scope="module")
def callers(module_serve: Serve) -> Iterator[Callers]:
    server = module_serve(Setup(api_key=STATIC, metrics_key=SCRAPER))
    revoked, disabled = server.make_key("acme"), server.make_key("zeta", role="owner")
    server.tenants.revoke_key(revoked[3:11])
    server.tenants.update_tenant("zeta", disabled=True)
    expired = server.make_key("acme", role="owner", expires=time.time() + 0.5)
    while server.keys.find(expired.encode()) is not None:
        time.sleep(0.01)
    user = server.make_key("acme")
    right = {
        "user": user,
        "owner": server.make_key("acme", role="owner"),
        "admin": server.make_key("default", role="admin"),
        "static": STATIC,
        "scraper": SCRAPER,
    }
    wrong = {
        "none": {},
        "empty": bearer(""),
        "unknown": bearer("lv-aaaaaaaa-" + "x" * 43),
        "cut short": bearer(user[:-1]),
        "revoked": bearer(revoked),
        "expired": bearer(expired),
        "disabled": bearer(disabled),
        "huge": bearer("x" * 8_000),
        "another scheme": {"authorization": f"Basic {user}"},
        "no scheme": {"authorization": user},
    }
    yield Callers(server, wrong, {name: bearer(key) for name, key in right.items()})


def routes(server: LiveServer) -> set[tuple[str, str]]:
    """Every method and path: those of the routers, and those that the framework adds."""
    there = [route for router, _ in ROUTERS for route in router.routes]
    there += [route for route in server.app.routes if isinstance(route, Route)]
    return {(method, route.path) for route in there if isinstance(route, Route) for method in route.methods or ()}


def send(client: httpx.Client, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    url = path.replace("{name:path}", "nobody/has").replace("{model:path}", "nobody/has")
    body = {"lora_name": "nobody", "lora_path": "nowhere"} if path.endswith("load_lora_adapter") else {}
    return client.request(method, url, headers=headers, json=body if method in ("POST", "PUT") else None)


def code(answer: httpx.Response) -> Any:
    return answer.json()["error"].get("code") if answer.content else None


@pytest.fixture
def client(callers: Callers) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=callers.server.url, timeout=30) as client:
        yield client


def test_every_route_is_in_the_table(callers: Callers) -> None:
    assert routes(callers.server) == set().union(*WHO.values())
    assert sum(map(len, WHO.values())) == len(set().union(*WHO.values()))


def test_without_a_right_key_every_route_but_the_probes_answers_the_same(
    callers: Callers, client: httpx.Client
) -> None:
    answers: dict[bool, set[Any]] = {True: set(), False: set()}
    for method, path in [*sorted(routes(callers.server)), ("GET", "/nowhere"), ("GET", "/v1/adapters/%0Ax")]:
        for name, headers in callers.wrong.items():
            answer = send(client, method, path, headers)
            if (method, path) in WHO["anybody"]:
                assert answer.status_code in (200, 307), (method, path, name)
                continue
            assert answer.status_code == 401, (method, path, name)
            told = {**answer.headers}
            for varying in VARYING:
                told.pop(varying)
            body = b"" if method == "HEAD" else answer.content
            answers[path.startswith("/v1/messages")].add((body, tuple(sorted(told.items()))))
    # Two shapes of errors, OpenAI's and Anthropic's; HEAD has the headers without the body.
    assert {name: len(told) for name, told in answers.items()} == {True: 1, False: 2}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_open_nothing(callers: Callers, client: httpx.Client, method: str) -> None:
    there = routes(callers.server)
    for path in sorted({path for _, path in there}):
        if (method, path) in there:
            continue
        answer = send(client, method, path, callers.wrong["unknown"])
        open_to_all = any(where == path for _, where in WHO["anybody"])
        assert answer.status_code == (405 if open_to_all else 401), (method, path)


def test_each_role_may_call_what_the_table_says(callers: Callers, client: httpx.Client) -> None:
    """Of what a key opens nothing is refused for who sent it: what is asked is wrong, or isn't there."""
    may = {
        "user": ("anybody", "any key"),
        "owner": ("anybody", "any key", "owners"),
        "admin": tuple(WHO),
        "static": tuple(WHO),
        "scraper": ("anybody", "scrapers"),
    }
    for who, opened in may.items():
        for method, path in sorted(routes(callers.server)):
            answer = send(client, method, path, callers.right[who])
            said = (who, method, path, answer.status_code)
            if any((method, path) in WHO[group] for group in opened):
                assert answer.status_code not in (401, 403, 405, 500), said
            elif who == "scraper":
                assert answer.status_code == 401, said
            else:
                assert (answer.status_code, code(answer)) == (403, "role_not_allowed"), said


def test_what_a_role_may_not_call_says_nothing_of_what_is_there(callers: Callers, client: httpx.Client) -> None:
    told = set()
    for name in ("nobody/has", "a", "x" * 100, "..%2f", "a@b"):
        answer = client.delete(f"/v1/adapters/{name}", headers=callers.right["user"])
        told.add(answer.text)
    assert len(told) == 1
    assert "role owner or admin" in told.pop()


@pytest.mark.parametrize("headers", [{"x-forwarded-for": "10.0.0.9"}, {"host": "models.example"}])
def test_a_kept_key_manages_from_anywhere_and_the_static_one_here(
    callers: Callers, client: httpx.Client, headers: dict[str, str]
) -> None:
    for who, expected in (("owner", 404), ("admin", 404), ("static", 403)):
        answer = client.post("/v1/adapters/nobody/rollback", headers={**callers.right[who], **headers})
        assert answer.status_code == expected, who
        assert who != "static" or code(answer) == "loopback_only"


def test_anthropics_header_brings_a_key_as_well(callers: Callers, client: httpx.Client) -> None:
    for who, expected in (("user", 200), ("owner", 200)):
        key = callers.right[who]["authorization"].removeprefix("Bearer ")
        assert client.get("/v1/models", headers={"x-api-key": key}).status_code == expected
    assert client.get("/v1/models", headers={"x-api-key": "x" * 8_000}).status_code == 401


def test_the_first_key_closes_a_server_and_deleting_it_opens_none(serve: Serve) -> None:
    server = serve()
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 200
        key = server.make_key("acme")
        assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 401
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200
        assert client.get("/metrics", headers=bearer(key)).status_code == 403
        assert client.get("/health").status_code == 200
        server.tenants.revoke_key(key[3:11])
        server.call(server.keys.refresh())
        assert client.get("/v1/models", headers=bearer(key)).status_code == 401
        server.tenants.delete_tenant("acme", occupied=lambda _: None)
        server.call(server.keys.refresh())
        assert client.get("/v1/models", headers=bearer(key)).status_code == 401
        assert client.get("/v1/models").status_code == 401


def test_a_scrapers_key_closes_the_series_of_an_open_server(serve: Serve) -> None:
    server = serve(Setup(metrics_key=SCRAPER))
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer(SCRAPER)).status_code == 200


def test_keys_are_in_no_log(callers: Callers, client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for headers in (*callers.right.values(), *callers.wrong.values()):
        client.get("/v1/models", headers=headers)
        client.post("/v1/chat/completions", headers=headers, json={})
    assert "/v1/models" in caplog.text
    secrets = [headers["authorization"].removeprefix("Bearer ") for headers in callers.right.values()]
    secrets += [secret[12:] for secret in secrets if secret.startswith("lv-")]  # what the id doesn't say
    assert not [secret for secret in secrets if secret in caplog.text]
