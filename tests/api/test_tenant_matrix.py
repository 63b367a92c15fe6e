"""Who may do what to whose names, on every route there is: a matrix generated from the application's own routes.

Three tenants, each with names of its own, one that another shares with it, the operator's, another's and none at all.
What another has looks like what isn't there, byte for byte. A route that isn't listed here fails.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.routing import _IncludedRouter
from starlette.routing import Route

from api.live_server import BASE, Serve
from api.peft_files import make_adapter
from api.tenants import OPERATOR, TENANTS, People, call, people, upload
from livery.api import console

MESSAGES = [{"role": "user", "content": "hi"}]
Request = tuple[str, str, dict[str, Any]]  # method, path, what httpx sends with it
KINDS = ("own", "shared", "public", "other", "plain", "absent")  # plain: another's name without its tenant


class Case(NamedTuple):
    """A route: the request it gets for a name, and the status for each kind of name, by role."""

    request: Callable[[str], Request]
    owner: dict[str, int]
    user: dict[str, int]


def _statuses(own: int, shared: int, public: int, others: int) -> dict[str, int]:
    return dict(zip(KINDS, (own, shared, public, others, others, others), strict=True))


def _ask(path: str, ok: int = 200, **body: Any) -> Case:
    """Whoever has a key asks what its tenant may use."""
    statuses = _statuses(ok, ok, ok, 404)
    return Case(lambda name: ("POST", path, {"json": {"model": name, **body}}), statuses, statuses)


def _manage(method: str, path: str, statuses: dict[str, int], **sent: Any) -> Case:
    """Owners manage; users get the same refusal whatever the name is."""
    return Case(lambda name: (method, path.format(name=name), sent), statuses, _statuses(403, 403, 403, 403))


def _fixed(method: str, path: str, owner: int, user: int, **sent: Any) -> Case:
    """A route that names nothing."""
    return Case(
        lambda _: (method, path, sent), _statuses(owner, owner, owner, owner), _statuses(user, user, user, user)
    )


SEEN = _statuses(200, 200, 200, 404)
CHANGED = _statuses(200, 404, 404, 404)  # only one's own
MADE = _statuses(200, 200, 200, 200)  # a name of one's own, whoever else has one that looks like it
OPERATORS = _statuses(403, 403, 403, 403)
ONE = {"adapter_config.json": b"{}"}
TO_BASE = {"targets": [{"adapter": BASE}]}

# In the order in which they are tried: what deletes comes last.
ROUTES: dict[tuple[str, str], Case] = {
    ("POST", "/v1/chat/completions"): _ask("/v1/chat/completions", messages=MESSAGES, max_tokens=1),
    ("POST", "/v1/completions"): _ask("/v1/completions", prompt=[1000], max_tokens=1),
    ("POST", "/v1/responses"): _ask("/v1/responses", input="hi", max_output_tokens=1),
    ("POST", "/v1/messages"): _ask("/v1/messages", messages=MESSAGES, max_tokens=1),
    ("POST", "/v1/messages/count_tokens"): _ask("/v1/messages/count_tokens", messages=MESSAGES),
    ("POST", "/v1/embeddings"): _ask("/v1/embeddings", input="hi"),
    ("POST", "/classify"): _ask("/classify", 400, input="hi"),  # none of these adapters classifies
    ("POST", "/v1/score"): _ask("/v1/score", text_1="a", text_2="b"),
    ("POST", "/score"): _ask("/score", text_1="a", text_2="b"),
    ("POST", "/tokenize"): _ask("/tokenize", prompt="hi"),
    ("POST", "/detokenize"): _ask("/detokenize", tokens=[1000]),
    ("GET", "/tokenizer_info"): Case(lambda name: ("GET", "/tokenizer_info", {"params": {"model": name}}), SEEN, SEEN),
    ("GET", "/v1/models"): _fixed("GET", "/v1/models", 200, 200),
    ("GET", "/v1/models/{model:path}"): Case(lambda name: ("GET", f"/v1/models/{name}", {}), SEEN, SEEN),
    ("GET", "/v1/adapters"): _fixed("GET", "/v1/adapters", 200, 403),
    ("POST", "/v1/adapters:check"): _fixed("POST", "/v1/adapters:check", 422, 403, files=ONE),
    ("GET", "/v1/adapters/{name:path}"): _manage("GET", "/v1/adapters/{name}", SEEN),
    ("GET", "/v1/adapters/{name:path}/versions"): _manage("GET", "/v1/adapters/{name}/versions", CHANGED),
    ("GET", "/v1/adapters/{name:path}/profile"): _manage("GET", "/v1/adapters/{name}/profile", CHANGED),
    ("POST", "/v1/adapters/{name:path}/activate"): _manage(
        "POST", "/v1/adapters/{name}/activate", CHANGED, json={"version": 1}
    ),
    ("POST", "/v1/adapters/{name:path}/rollback"): _manage("POST", "/v1/adapters/{name}/rollback", CHANGED),
    ("POST", "/v1/adapters/{name:path}/prefetch"): _manage("POST", "/v1/adapters/{name}/prefetch", CHANGED),
    ("POST", "/v1/adapters/{name:path}/pin"): _manage("POST", "/v1/adapters/{name}/pin", OPERATORS),
    ("POST", "/v1/adapters/{name:path}/unpin"): _manage("POST", "/v1/adapters/{name}/unpin", OPERATORS),
    ("POST", "/v1/adapters/{name:path}/share"): _manage(
        "POST", "/v1/adapters/{name}/share", CHANGED, json={"tenant": "zoe"}
    ),
    ("POST", "/v1/adapters/{name:path}/unshare"): _manage(
        "POST", "/v1/adapters/{name}/unshare", CHANGED, json={"tenant": "zoe"}
    ),
    ("PUT", "/v1/adapters/{name:path}/profile"): _manage(
        "PUT", "/v1/adapters/{name}/profile", CHANGED, json={"profile": {"temperature": 0.5}}
    ),
    # What is sent is refused once it is looked at, which says that the name was not in the way.
    ("PUT", "/v1/adapters/{name:path}"): _manage("PUT", "/v1/adapters/{name}", OPERATORS, json={"source": ".pool/one"}),
    ("POST", "/v1/adapters/{name:path}/versions"): _manage(
        "POST", "/v1/adapters/{name}/versions", _statuses(422, 422, 422, 422), files=ONE
    ),
    ("GET", "/v1/aliases"): _fixed("GET", "/v1/aliases", 200, 403),
    ("PUT", "/v1/aliases/{name:path}"): _manage("PUT", "/v1/aliases/{name}-alias", MADE, json=TO_BASE),
    ("GET", "/v1/aliases/{name:path}"): _manage("GET", "/v1/aliases/{name}-alias", MADE),
    ("DELETE", "/v1/aliases/{name:path}"): _manage("DELETE", "/v1/aliases/{name}-alias", MADE),
    ("POST", "/v1/load_lora_adapter"): Case(
        lambda name: ("POST", "/v1/load_lora_adapter", {"json": {"lora_name": name, "lora_path": "x"}}),
        OPERATORS,
        OPERATORS,
    ),
    ("POST", "/v1/unload_lora_adapter"): Case(
        lambda name: ("POST", "/v1/unload_lora_adapter", {"json": {"lora_name": name}}), CHANGED, OPERATORS
    ),
    ("DELETE", "/v1/adapters/{name:path}"): _manage("DELETE", "/v1/adapters/{name}", CHANGED),
    ("DELETE", "/v1/models/{model:path}"): _manage("DELETE", "/v1/models/{name}", CHANGED),
    ("GET", "/v1/status"): _fixed("GET", "/v1/status", 200, 200),
    ("GET", "/v1/usage"): _fixed("GET", "/v1/usage", 200, 200),
    ("GET", "/load"): _fixed("GET", "/load", 200, 200),
    ("GET", "/version"): _fixed("GET", "/version", 200, 200),
    ("GET", "/metrics"): _fixed("GET", "/metrics", 403, 403),
    ("GET", "/openapi.json"): _fixed("GET", "/openapi.json", 200, 200),
}
PAGES = {route.path for route in console.router.routes if isinstance(route, Route)}  # files, the same to everybody
OPEN = {"/health", "/ready", "/ping"}  # to anybody
DELETES = ("unload_lora_adapter", "DELETE /v1/adapters", "DELETE /v1/models")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("saved")
    return [make_adapter(folder / name, seed=seed) for seed, name in enumerate(("one", "two"))]


@pytest.fixture(scope="module")
def live(module_serve: Serve, saved: list[Path]) -> People:
    """Each tenant has an adapter of two versions, one that the next one may use, and a secret."""
    server = people(module_serve())
    assert upload(server, OPERATOR, "common", saved[0]).status_code == 200
    for tenant in TENANTS:
        for name, folder in itertools.product(("mine", "lent", f"{tenant}-secret"), saved):
            assert upload(server, f"{tenant}-owner", name, folder).status_code == 200
        assert share(server, tenant, "lent", after(tenant)).status_code == 200
    return server


def after(tenant: str) -> str:
    return TENANTS[(TENANTS.index(tenant) + 1) % len(TENANTS)]


def share(server: People, tenant: str, name: str, grantee: str) -> httpx.Response:
    return call(server, f"{tenant}-owner", "POST", f"/v1/adapters/{name}/share", json={"tenant": grantee})


def send(server: People, key: str, request: Request) -> httpx.Response:
    method, path, sent = request
    return call(server, key, method, path, **sent)


def test_every_route_is_listed(live: People) -> None:
    included = [route.original_router for route in live.server.app.routes if isinstance(route, _IncludedRouter)]
    there = [*live.server.app.routes, *(route for router in included for route in router.routes)]
    routes = {
        (method, route.path)
        for route in there
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
        if route.path not in OPEN and route.path not in PAGES
    }
    assert routes == set(ROUTES)


@pytest.mark.parametrize("tenant", TENANTS)
def test_who_may_do_what_to_whose_names(live: People, saved: list[Path], tenant: str) -> None:
    lender = next(other for other in TENANTS if after(other) == tenant)
    other = after(tenant)
    names = dict(
        zip(
            KINDS,
            ("mine", f"{lender}/lent", "common", f"{other}/{other}-secret", f"{other}-secret", "absent"),
            strict=True,
        )
    )
    for role, (route, case) in itertools.product(("user", "owner"), ROUTES.items()):
        expected = case.owner if role == "owner" else case.user
        refusals = set()
        for kind, name in names.items():
            answer = send(live, f"{tenant}-{role}", case.request(name))
            assert answer.status_code == expected[kind], (route, role, kind, answer.text)
            if role == "user" and expected[kind] == 403:
                refusals.add(answer.text)
            assert f"{other}-secret" not in answer.text or kind in ("other", "plain")
            assert f"{tenant}/" not in answer.text
        assert len(refusals) <= 1  # the same whatever the name is
        if role == "owner" and any(word in f"{route[0]} {route[1]}" for word in DELETES):
            for folder in saved:
                assert upload(live, f"{tenant}-owner", "mine", folder).status_code == 200


def test_what_another_has_is_what_is_not_there_byte_for_byte(live: People, saved: list[Path]) -> None:
    """What acme is told before bob has the name, cora is told afterwards, who has as little to do with it."""

    def told(tenant: str) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for role, (route, case), name in itertools.product(
            ("user", "owner"), ROUTES.items(), ("bob/later", "later", "later@1", "0.5*bob/later+0.5*later")
        ):
            if route[1] in ("/v1/status", "/v1/models", "/v1/adapters", "/v1/aliases"):  # a tenant's own, or numbers
                continue
            answer = send(live, f"{tenant}-{role}", case.request(name))
            varying = ("date", "x-request-id", "request-id")
            headers = {key: value for key, value in answer.headers.items() if key not in varying}
            # The time, and what the caller itself is called and how long that is.
            text = re.sub(rf'"updated":\d+|"owner":"{tenant}"|up to \d+', "", answer.text)
            found.append((route, role, name, answer.status_code, headers, text))
        return found

    before = told("acme")
    for name in ("later", "bob/later"):
        assert upload(live, "bob-owner", name, saved[0]).status_code == 200
    assert told("cora") == before


def test_the_operator_does_everything_by_names_in_full(live: People, saved: list[Path]) -> None:
    assert upload(live, OPERATOR, "acme/lodger", saved[0]).json()["owner"] == "acme"
    for route, case in ROUTES.items():
        if "profile" in route[1] or route[0] == "DELETE" or "load_lora" in route[1]:
            continue
        answer = send(live, OPERATOR, case.request("acme/lodger"))
        assert answer.status_code in (200, 400, 409, 422, 404), (route, answer.text)
        assert answer.status_code != 404 or route[1].endswith("/{name:path}"), (route, answer.text)  # no source there
    listed = call(live, OPERATOR, "GET", "/v1/adapters", params={"tenant": "acme"}).json()["data"]
    assert {item["owner"] for item in listed} == {"acme"}
    assert "acme/lodger" in {item["name"] for item in listed}
    assert call(live, OPERATOR, "DELETE", "/v1/adapters/acme/lodger").status_code == 200
