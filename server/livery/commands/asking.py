"""How a command asks a server over HTTP, and what it says when that doesn't work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import httpx

from livery.adapter_views import Json
from livery_adapters.refusal import AdapterRefused

CONNECT_S = 10.0
LOOK_S = 30.0  # for what only reads
ADDRESS_REMEDY = "give its address with --url, or its folder with --data"
UNIX = "unix:"
UNKNOWN_URL = "unknown_url"  # the code of an answer where no route is


class CommandFailed(Exception):
    """A command couldn't do what it was told; the message names the thing, the value and the remedy."""


class ServerUnusable(CommandFailed):
    """A server can't be asked; the message says where it was looked for and what it said."""


class Asking:
    """One server. `hint` says what to look at when nobody answers."""

    hint: ClassVar[str]

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def _ask(self, method: str, path: str, fields: set[str], **sent: Any) -> Json:  # noqa: ANN401
        """One request; `fields` are what a Livery server answers it with."""
        try:
            answer = await self._client.request(method, path, **sent)
            body = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnusable(f"no answer from {self._url} ({error or type(error).__name__}); {self.hint}") from None
        except ValueError:
            raise ServerUnusable(f"{self._url} answers, but not like a Livery server; {ADDRESS_REMEDY}") from None
        if answer.is_success and isinstance(body, dict) and fields <= body.keys():
            return body
        match body:
            case {"error": {"message": str(message), "code": code}}:
                raise self._refused(answer.status_code, message, code)
            case {"error": {"message": str(message)}}:
                raise ServerUnusable(f"{self._url} says: {message}")
        raise ServerUnusable(
            f"{self._url} answers {path} with status {answer.status_code} and not like a Livery server; "
            f"{ADDRESS_REMEDY}"
        )

    def _refused(self, status: int, message: str, code: object) -> Exception:
        """What was refused reads as without a server; what is about the server names it."""
        if status in (400, 404, 409, 413, 422) and isinstance(code, str) and code != UNKNOWN_URL:
            return AdapterRefused(code, message)
        return self._unusable(message, code)

    def _unusable(self, message: str, code: object) -> ServerUnusable:
        """With the remedy where the address is the one that OpenAI's clients take."""
        address = self._url.rstrip("/")
        root = address.removesuffix("/v1")
        remedy = f" Leave out /v1: --url {root}" if code == UNKNOWN_URL and root != address else ""
        return ServerUnusable(f"{self._url} says: {message}{remedy}")


@asynccontextmanager
async def http_client(url: str, key: str | None, example: str) -> AsyncIterator[httpx.AsyncClient]:
    """Connections to a server's URL, or to its Unix socket as unix:PATH.

    Raises CommandFailed for an address or a key that can't be used.
    """
    key = key.strip() if key else None
    if key and not (key.isascii() and key.isprintable()):
        raise CommandFailed("the key given with --key or its variable has letters that no HTTP header can carry")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    socket = url.removeprefix(UNIX) if url.startswith(UNIX) else None
    transport = httpx.AsyncHTTPTransport(uds=socket) if socket else None
    try:
        client = httpx.AsyncClient(
            base_url="http://localhost" if socket else url.rstrip("/"),
            headers=headers,
            timeout=httpx.Timeout(LOOK_S, connect=CONNECT_S),
            transport=transport,
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise CommandFailed(f"--url {url!r} is no address ({error}); write it as in {example}") from None
    async with client:
        yield client


def given(fields: Json) -> Json:
    """What was said of all that could be."""
    return {name: value for name, value in fields.items() if value is not None}
