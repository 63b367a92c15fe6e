"""A server to be measured: where it is, what it serves, which version it says it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

KEY_ENV = "LIVERY_BENCH_API_KEY"
METRICS_KEY_ENV = "LIVERY_BENCH_METRICS_KEY"  # where /metrics is opened by another key


class TargetUnusable(Exception):
    """A server can't be measured; the message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server under its name in the tables. `url` is its root; a trailing /v1 is accepted.

    `fields` are put into the body of a request for a model, for servers that don't choose adapters by `model`;
    `models` are what such a server has, the base first, in place of what it lists. `key_env` is the environment
    variable with the key for requests that no tenant sends; without it, none is sent. `echoes` says that answers
    bear the model's name as it was asked for; where a server tells another one, unset it, or each answer is wrong.
    """

    name: str
    url: str
    models: tuple[str, ...] = ()
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    key_env: str = KEY_ENV
    echoes: bool = True

    def __post_init__(self) -> None:
        root = self.url.rstrip("/").removesuffix("/v1")
        if not self.name or not root.startswith(("http://", "https://")):
            raise ValueError(f"target {self.name!r}={self.url!r}: expected NAME=http://HOST:PORT")
        object.__setattr__(self, "url", root)


def key_header(*names: str) -> dict[str, str]:
    """The header with the key in the first of these environment variables that has one; none without."""
    keys = [key for name in names if (key := os.environ.get(name))]
    return {"authorization": f"Bearer {keys[0]}"} if keys else {}


async def list_models(client: httpx.AsyncClient, target: Target) -> list[str]:
    """The names a server serves, the base first. Raises TargetUnusable."""
    try:
        response = await client.get(target.url + "/v1/models")
        response.raise_for_status()
        names = [entry["id"] for entry in response.json()["data"]]
    except httpx.HTTPStatusError as failure:
        raise TargetUnusable(_refused(target, failure.response.status_code)) from failure
    except httpx.HTTPError as failure:
        why = f"{type(failure).__name__}: {failure}".removesuffix(": ")
        raise TargetUnusable(
            f"target {target.name}: GET {target.url}/v1/models failed ({why}); is the server up?"
        ) from failure
    except (ValueError, KeyError, TypeError) as failure:
        raise TargetUnusable(
            f"target {target.name}: {target.url}/v1/models lists no models as OpenAI's API does "
            f"({type(failure).__name__}: {failure}); is this the root of such a server?"
        ) from failure
    if not names:
        raise TargetUnusable(f"target {target.name}: {target.url}/v1/models lists no model")
    return names


def _refused(target: Target, status: int) -> str:
    """What to do about a server that doesn't list its models."""
    if status not in (401, 403):
        remedy = "is this the root of a server with OpenAI's API?"
    elif os.environ.get(target.key_env):
        remedy = f"the key in {target.key_env} isn't one of this server's"
    else:
        remedy = f"it asks for a key: put one into {target.key_env}"
    return f"target {target.name}: GET {target.url}/v1/models answers {status}; {remedy}"


async def server_version(client: httpx.AsyncClient, target: Target) -> str | None:
    """What the server says at /version, or at llama.cpp's /props, or None where it says nothing."""
    for path, name in (("/version", "version"), ("/props", "build_info")):
        try:
            response = await client.get(target.url + path)
            if response.status_code == 200:
                return str(response.json()[name])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            continue
    return None
