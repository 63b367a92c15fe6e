"""GET /openapi.json against the server it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from api.live_server import LiveServer, Serve
from api.peft_files import make_adapter
from livery.api.app import ROUTERS

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
ROUTES = {
    (method, route.path): route
    for router, _ in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and route.include_in_schema
    for method in route.methods
}


@pytest.fixture(scope="module")
def paths(server: LiveServer) -> dict[str, Any]:
    """What is described, by path and method."""
    described: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    return described


def test_every_route_says_what_it_answers(paths: dict[str, Any]) -> None:
    for path, methods in paths.items():
        for method, operation in methods.items():
            (answer, *_) = operation["responses"]["200"]["content"].values()
            assert answer["schema"], f"{method} {path}: responses=answers(...) is missing at the route"


def test_operations_have_names_of_their_own(paths: dict[str, Any]) -> None:
    names = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(names) == len(set(names))
    assert "chat_completions" in names


def test_answers_look_as_described(serve: Serve, tmp_path: Path) -> None:
    """Every route in turn, through an adapter's life."""
    make_adapter(tmp_path / "adapters" / "one")
    server = serve(folder=tmp_path)
    source = {"source": "one"}
    asked: list[tuple[str, str, str, Any]] = [
        ("POST", "/v1/chat/completions", "", CHAT),
        ("POST", "/v1/completions", "", {"prompt": "one"}),
        ("POST", "/v1/embeddings", "", {"input": ["one", "two"]}),
        ("POST", "/v1/score", "", {"text_1": "one", "text_2": ["two", "three"]}),
        ("GET", "/v1/models", "", None),
        ("GET", "/v1/models/{model:path}", "one", None),
        ("POST", "/v1/adapters:check", "", source),
        ("PUT", "/v1/adapters/{name:path}", "two", source),
        ("GET", "/v1/adapters", "", None),
        ("GET", "/v1/adapters/{name:path}", "two", None),
        ("GET", "/v1/adapters/{name:path}/versions", "two", None),
        ("PUT", "/v1/adapters/{name:path}/profile", "two", {"profile": {"temperature": 0.5}}),
        ("GET", "/v1/adapters/{name:path}/profile", "two", None),
        ("POST", "/v1/adapters/{name:path}/activate", "two", {"version": 1}),
        ("POST", "/v1/adapters/{name:path}/prefetch", "two", None),
        ("POST", "/v1/adapters/{name:path}/pin", "two", None),
        ("POST", "/v1/adapters/{name:path}/unpin", "two", None),
        ("PUT", "/v1/aliases/{name:path}", "both", {"targets": [{"adapter": "one"}, {"adapter": "two"}]}),
        ("GET", "/v1/aliases", "", None),
        ("GET", "/v1/aliases/{name:path}", "both", None),
        ("DELETE", "/v1/aliases/{name:path}", "both", None),
        ("DELETE", "/v1/adapters/{name:path}", "two", None),
        ("DELETE", "/v1/models/{model:path}", "one", None),
        ("POST", "/v1/responses", "", {"input": "Hi", "max_output_tokens": 2}),
        ("POST", "/v1/messages", "", {**CHAT, "max_tokens": 2}),
        ("POST", "/v1/messages/count_tokens", "", {"messages": CHAT["messages"]}),
        ("POST", "/tokenize", "", {"prompt": "one", "return_token_strs": True}),
        ("POST", "/tokenize", "", {"messages": CHAT["messages"]}),
        ("POST", "/detokenize", "", {"tokens": [1, 2]}),
        ("GET", "/tokenizer_info", "", None),
        ("GET", "/load", "", None),
        ("POST", "/ping", "", None),
        ("GET", "/health", "", None),
        ("GET", "/ready", "", None),
        ("GET", "/ping", "", None),
        ("GET", "/version", "", None),
    ]
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for method, path, name, body in asked:
            url = path.replace("{name:path}", name).replace("{model:path}", name)
            answer = client.request(method, url, json=body)
            assert answer.status_code == 200, f"{method} {url}: {answer.text}"
            ROUTES[method, path].responses[200]["model"].model_validate_json(answer.content, strict=True)
