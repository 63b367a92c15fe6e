"""Changes that are made only while a name is as its client last saw it, and queries that say nothing else."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from api.live_server import LiveServer, Setup
from api.peft_files import make_adapter
from livery.api import adapters
from livery.text import Tokenizer

STALE, NOW = '"1"', '"2"'


class Change(NamedTuple):
    """A route, and what asks it for a change that would be made if there were no condition."""

    method: str
    route: str
    sent: dict[str, Any]


CONDITIONAL = [
    Change("PUT", "/v1/adapters/{name:path}", {"json": {"source": ".pool/three"}}),
    Change("DELETE", "/v1/adapters/{name:path}", {}),
    Change("DELETE", "/v1/models/{model:path}", {}),
    Change("POST", "/v1/adapters/{name:path}/versions", {"weights": "three"}),
    Change("POST", "/v1/adapters/{name:path}/activate", {"json": {"version": 1}}),
    Change("POST", "/v1/adapters/{name:path}/rollback", {}),
    Change("PUT", "/v1/adapters/{name:path}/profile", {"json": {"profile": {"top_p": 0.5}}}),
    Change("PUT", "/v1/aliases/{name:path}", {"json": {"targets": [{"adapter": "pirate"}]}}),
    Change("DELETE", "/v1/aliases/{name:path}", {}),
]
SHARED = {"json": {"tenant": "acme"}}
WHATEVER = [  # these change nothing that a generation counts, or say the name elsewhere
    *(Change("POST", f"/v1/adapters/{{name:path}}/{verb}", {}) for verb in ("prefetch", "pin", "unpin")),
    *(Change("POST", f"/v1/adapters/{{name:path}}/{verb}", SHARED) for verb in ("share", "unshare")),
    Change("POST", "/v1/load_lora_adapter", {"json": {"lora_name": "pirate", "lora_path": ".pool/one"}}),
    Change("POST", "/v1/unload_lora_adapter", {"json": {"lora_name": "pirate"}}),
]
READING = {"/v1/adapters:check"}  # by POST
ROUTES = pytest.mark.parametrize("change", CONDITIONAL, ids=lambda change: f"{change.method} {change.route}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for seed, name in enumerate(("one", "two", "three")):
        make_adapter(folder / name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def live(tokenizer: Tokenizer, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("preconditions")
    shutil.copytree(saved, folder / "adapters" / ".pool")
    server = LiveServer(Setup(), tokenizer, folder)
    server.start()
    yield server
    server.stop()


class Standing:
    """An adapter `pirate` and an alias `front` on a server, each in generation 2, under names of their own."""

    def __init__(self, server: LiveServer, saved: Path) -> None:
        self._url, self._saved = server.url, saved
        self._number = uuid.uuid4().hex[:8]
        for which in ("one", "two"):
            assert self.call("PUT", "/v1/adapters/pirate", json={"source": f".pool/{which}"}).is_success
        for sticky in ("key", "none"):
            body = {"targets": [{"adapter": "pirate"}], "sticky": sticky}
            assert self.call("PUT", "/v1/aliases/front", json=body).is_success

    def call(self, method: str, path: str, json: object = None, **sent: Any) -> httpx.Response:
        named = msgspec.json.decode(self._named(msgspec.json.encode(json).decode()))
        more = {} if json is None else {"json": named}
        return httpx.request(method, self._url + self._named(path), timeout=30, **more, **sent)

    def ask(self, change: Change, query: str = "", if_match: str | None = None) -> httpx.Response:
        sent = dict(change.sent)
        headers = {} if if_match is None else {"if-match": if_match}
        if which := sent.pop("weights", None):
            sent["content"] = (self._saved / which / "adapter_model.safetensors").read_bytes()
            headers["content-type"] = "application/octet-stream"
        name = "front" if "aliases" in change.route else "pirate"
        path = re.sub(r"\{\w+:path\}", name, change.route)
        return self.call(change.method, path + query, headers=headers, **sent)

    def state(self) -> list[object]:
        """All that the changes could change."""
        paths = ("/v1/adapters/pirate", "/v1/adapters/pirate/versions", "/v1/aliases/front")
        return [self.call("GET", path).json() for path in paths]

    def _named(self, text: str) -> str:
        return re.sub(r"pirate|front", lambda found: f"{found[0]}-{self._number}", text)


@pytest.fixture
def standing(live: LiveServer, saved: Path) -> Standing:
    return Standing(live, saved)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_every_route_that_changes_something_is_among_these() -> None:
    found = {(method, route.path) for route in adapters.router.routes for method in route.methods or ()}  # type: ignore[attr-defined]
    changing = {(method, path) for method, path in found if method != "GET" and path not in READING}
    assert changing == {(change.method, change.route) for change in [*CONDITIONAL, *WHATEVER]}


@ROUTES
def test_a_stale_tag_changes_nothing_and_the_right_one_does(standing: Standing, change: Change) -> None:
    before = standing.state()
    refused = standing.ask(change, if_match=STALE)
    assert code_of(refused) == (412, "generation_mismatch"), refused.text
    assert "generation 2" in refused.text
    assert code_of(standing.ask(change, if_match="2")) == (400, "invalid_value")
    assert standing.state() == before
    done = standing.ask(change, if_match=NOW)
    assert done.is_success, done.text
    assert standing.state() != before
    if change.method != "DELETE":
        assert done.headers["etag"] == '"3"'


def test_deleting_takes_an_expected_generation(standing: Standing) -> None:
    deleting = [change for change in CONDITIONAL if change.method == "DELETE" and "models" not in change.route]
    for change in reversed(deleting):
        lost = standing.ask(change, "?expected_generation=1")
        assert code_of(lost) == (409, "generation_mismatch"), lost.text
        both = standing.ask(change, "?expected_generation=1", if_match=NOW)
        assert code_of(both) == (400, "invalid_value") and "send one of them" in both.text
        assert standing.ask(change, "?expected_generation=2", if_match=NOW).is_success


def test_what_is_read_has_the_tag_to_change_it_by(standing: Standing) -> None:
    for path in ("/v1/adapters/pirate", "/v1/adapters/pirate/profile", "/v1/aliases/front"):
        assert standing.call("GET", path).headers["etag"] == NOW, path


@pytest.mark.parametrize("change", WHATEVER, ids=lambda change: change.route)
def test_no_change_leaves_a_condition_unread(standing: Standing, change: Change) -> None:
    before = standing.state()
    refused = standing.ask(change, if_match=STALE)
    assert code_of(refused) == (400, "invalid_value")
    assert "If-Match is not taken here" in refused.text
    assert standing.state() == before


def test_a_misspelt_parameter_changes_nothing(standing: Standing) -> None:
    before = standing.state()
    for change in [*CONDITIONAL, *WHATEVER]:
        refused = standing.ask(change, "?activat=false")
        assert code_of(refused) == (400, "invalid_value"), change
        assert refused.json()["error"]["param"] == "activat"
    told = standing.call("GET", "/v1/adapters?serach=x").json()["error"]["message"]
    assert told == "'serach' is no parameter of this route, which takes after, limit, search, source, state, tenant."
    assert standing.state() == before
