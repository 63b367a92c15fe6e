"""A server that knows three tenants by keys: `acme-owner` is the key of acme with the role owner, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from api.live_server import LiveServer

TENANTS = ("acme", "bob", "cora")
OPERATOR = "operator"


@dataclass(frozen=True)
class People:
    """A server, and the keys of those who ask it by what they are called: `acme-owner`, `operator`."""

    server: LiveServer
    keys: Mapping[str, str]


def people(server: LiveServer) -> People:
    """A key for each tenant and role, and the operator's."""
    keys = {OPERATOR: server.make_key("default", role="admin")}
    for tenant in TENANTS:
        for role in ("user", "owner"):
            keys[f"{tenant}-{role}"] = server.make_key(tenant, role=role)
    return People(server, keys)


def call(who: People, key: str, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {who.keys[key]}"}
    return httpx.request(method, f"{who.server.url}{path}", headers=headers, timeout=30, **more)


def files(folder: Path) -> dict[str, tuple[str, bytes]]:
    names = ("adapter_config.json", "adapter_model.safetensors")
    return {name: (name, (folder / name).read_bytes()) for name in names}


def upload(who: People, key: str, name: str, folder: Path, query: str = "") -> httpx.Response:
    return call(who, key, "POST", f"/v1/adapters/{name}/versions{query}", files=files(folder))


def ask(who: People, key: str, model: str, **more: Any) -> httpx.Response:
    """One token of a completion."""
    body = {"model": model, "prompt": [1000], "max_tokens": 1, **more}
    return call(who, key, "POST", "/v1/completions", json=body)


def served_by(who: People, key: str, model: str, **more: Any) -> str:
    answer = ask(who, key, model, **more)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-livery-adapter"]


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]
