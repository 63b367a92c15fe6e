"""Where `livery adapters` reaches adapters: a running server over HTTP, or a data folder (livery.commands.offline).

Both answer a verb with the same JSON; livery.management says what is in it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import quote

import httpx

from livery.adapter_views import Json
from livery.commands.progress import Tell, bar
from livery.management import AddOptions
from livery_adapters.fetching import open_adapter_files
from livery_adapters.profile import PROFILE_NAME, Profile, write_profile
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import Sticky
from livery_adapters.tensor_file import CONFIG_NAME

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_S = 10.0
LOOK_S = 30.0  # for what only reads
CHANGE_S = 900.0  # a new version is fetched, checked and run before the answer
EVERYWHERE = Path("/")  # what its user may read, a command may
ADDRESS_REMEDY = "give its address with --url, or its folder with --data"


class CommandFailed(Exception):
    """A command couldn't do what it was told; the message names the thing, the value and the remedy."""


class ServerUnusable(CommandFailed):
    """A server can't be asked; the message says where it was looked for and what it said."""


class Backend(Protocol):
    """The verbs on adapters and aliases, as AdapterManagement has them.

    Each raises CommandFailed, AdapterRefused or RegistryError.
    """

    async def ls(
        self, *, after: str, limit: int, state: str | None, source: str | None, search: str | None
    ) -> Json: ...

    async def show(self, name: str) -> Json: ...

    async def versions(self, name: str) -> Json: ...

    async def inspect(self, source: str, approximate: int) -> Json:
        """The coverage report of a directory or of what a URL holds."""
        ...

    async def add(self, name: str, source: str, options: AddOptions) -> Json:
        """Take in a directory, or what a URL holds."""
        ...

    async def profile(self, name: str) -> Json: ...

    async def set_profile(self, name: str, profile: Profile, expected_generation: int | None = None) -> Json: ...

    async def activate(self, name: str, version: str, expected_generation: int | None = None) -> Json: ...

    async def rollback(self, name: str, expected_generation: int | None = None) -> Json: ...

    async def retire(self, name: str, *, drain_s: float = 0.0, expected_generation: int | None = None) -> Json: ...

    async def pin(self, name: str, pinned: bool) -> Json: ...

    async def prefetch(self, name: str) -> Json: ...

    async def aliases(self) -> Json: ...

    async def alias(self, name: str) -> Json: ...

    async def set_alias(
        self,
        name: str,
        targets: Iterable[tuple[str, float]],
        sticky: Sticky,
        expected_generation: int | None = None,
    ) -> Json: ...

    async def delete_alias(self, name: str) -> Json: ...


def is_remote(source: str) -> bool:
    """Whether a source is a URL; everything else is a directory here."""
    return "://" in source


def local_directory(source: str) -> Path:
    """A directory that a command was pointed at. Raises CommandFailed when there is none."""
    path = Path(os.path.abspath(source))  # `.` has no name that a message could give; links stay links
    if not path.is_dir():
        raise CommandFailed(
            f"{source} is not a directory; give the one that PEFT's save_pretrained wrote, or a source such as "
            "hf://org/name"
        )
    return path


class HttpBackend:
    """Asks a running server. Made by `open_server`."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def ls(self, *, after: str, limit: int, state: str | None, source: str | None, search: str | None) -> Json:
        given = {"after": after or None, "limit": limit, "state": state, "source": source, "search": search}
        return await self._ask("GET", "/v1/adapters", {"base", "data"}, params=_given(given))

    async def show(self, name: str) -> Json:
        return await self._ask("GET", _adapter(name), {"name", "state"})

    async def versions(self, name: str) -> Json:
        return await self._ask("GET", _adapter(name, "versions"), {"name", "data"})

    async def inspect(self, source: str, approximate: int) -> Json:
        path = "/v1/adapters:check"
        if is_remote(source):
            body = _given({"source": source, "approximate": approximate or None})
            return await self._change("POST", path, {"ok", "coverage"}, json=body)
        return await self._upload(path, source, {"approximate": approximate or None}, {"ok", "coverage"})

    async def add(self, name: str, source: str, options: AddOptions) -> Json:
        wanted: Json = {
            "pinned": options.pinned,
            "expected_generation": options.expected_generation,
            "approximate": options.approximate or None,
            "activate": None if options.activate else False,
        }
        if is_remote(source):
            given = options.profile.to_json() if options.profile is not None else None
            body = _given({"source": source, **wanted, "profile": given})
            return await self._change("PUT", _adapter(name), {"name", "state"}, json=body)
        profile = None if options.profile is None else write_profile(options.profile)
        return await self._upload(_adapter(name, "versions"), source, wanted, {"name", "state"}, profile)

    async def profile(self, name: str) -> Json:
        return await self._ask("GET", _adapter(name, "profile"), {"name", "profile"})

    async def set_profile(self, name: str, profile: Profile, expected_generation: int | None = None) -> Json:
        body = _given({"profile": profile.to_json(), "expected_generation": expected_generation})
        return await self._change("PUT", _adapter(name, "profile"), {"name", "state"}, json=body)

    async def activate(self, name: str, version: str, expected_generation: int | None = None) -> Json:
        body = _given({"version": version, "expected_generation": expected_generation})
        return await self._change("POST", _adapter(name, "activate"), {"name", "state"}, json=body)

    async def rollback(self, name: str, expected_generation: int | None = None) -> Json:
        body = _given({"expected_generation": expected_generation})
        return await self._change("POST", _adapter(name, "rollback"), {"name", "state"}, json=body)

    async def retire(self, name: str, *, drain_s: float = 0.0, expected_generation: int | None = None) -> Json:
        params = _given({"drain": drain_s or None, "expected_generation": expected_generation})
        return await self._change("DELETE", _adapter(name), {"name", "state"}, params=params)

    async def pin(self, name: str, pinned: bool) -> Json:
        return await self._change("POST", _adapter(name, "pin" if pinned else "unpin"), {"name", "state"})

    async def prefetch(self, name: str) -> Json:
        return await self._change("POST", _adapter(name, "prefetch"), {"name", "state"})

    async def aliases(self) -> Json:
        return await self._ask("GET", "/v1/aliases", {"data"})

    async def alias(self, name: str) -> Json:
        return await self._ask("GET", _alias(name), {"name", "targets"})

    async def set_alias(
        self,
        name: str,
        targets: Iterable[tuple[str, float]],
        sticky: Sticky,
        expected_generation: int | None = None,
    ) -> Json:
        listed = [{"adapter": adapter, "weight": weight} for adapter, weight in targets]
        body = _given({"targets": listed, "sticky": sticky, "expected_generation": expected_generation})
        return await self._change("PUT", _alias(name), {"name", "targets"}, json=body)

    async def delete_alias(self, name: str) -> Json:
        return await self._change("DELETE", _alias(name), {"name", "deleted"})

    async def usage(self, words: Json) -> Json:
        """A page of what was used; the words are the parameters of GET /v1/usage."""
        return await self._ask("GET", "/v1/usage", {"by", "data"}, params=words)

    # -- inside ------------------------------------------------------------------------------------------

    async def _upload(self, path: str, source: str, params: Json, fields: set[str], profile: str | None = None) -> Json:
        """The files of a directory as parts of one body that is never held whole; `profile` instead of its own."""
        directory = local_directory(source)
        with ExitStack() as stack:
            opened = stack.enter_context(open_adapter_files(directory, [EVERYWHERE]))
            total = sum(os.fstat(file.fileno()).st_size for file in opened.values())
            tell = stack.enter_context(bar(f"sending {directory.name}", total))
            sent = _Sent(tell)
            parts: dict[str, Any] = {
                name: (name, _Told(file, sent), _media_type(name)) for name, file in opened.items()
            }
            if profile is not None:
                parts[PROFILE_NAME] = (PROFILE_NAME, profile.encode(), "application/yaml")
            return await self._change("POST", path, fields, params=_given(params), files=parts)

    async def _change(self, method: str, path: str, fields: set[str], **sent: Any) -> Json:  # noqa: ANN401
        return await self._ask(method, path, fields, timeout=httpx.Timeout(CHANGE_S, connect=CONNECT_S), **sent)

    async def _ask(self, method: str, path: str, fields: set[str], **sent: Any) -> Json:  # noqa: ANN401
        """One request; `fields` are what a Livery server answers it with."""
        try:
            answer = await self._client.request(method, path, **sent)
            body = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnusable(
                f"no answer from {self._url} ({error or type(error).__name__}); is `livery serve` running there? "
                "--url or LIVERY_URL names another, --data DIR needs no server"
            ) from None
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
        if status in (400, 404, 409, 413, 422) and isinstance(code, str):
            return AdapterRefused(code, message)
        return ServerUnusable(f"{self._url} says: {message}")


@asynccontextmanager
async def open_server(url: str, key: str | None) -> AsyncIterator[HttpBackend]:
    """A server to ask. Raises CommandFailed for an address or a key that can't be used."""
    key = key.strip() if key else None
    if key and not (key.isascii() and key.isprintable()):
        raise CommandFailed("the key given with --key or LIVERY_API_KEY has letters that no HTTP header can carry")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        client = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(LOOK_S, connect=CONNECT_S)
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise CommandFailed(f"--url {url!r} is no address ({error}); write it as in {DEFAULT_URL}") from None
    async with client:
        yield HttpBackend(client, url)


class _Sent:
    """Bytes of all files together."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._count = 0

    def add(self, count: int) -> None:
        self._count += count
        self._tell(self._count)


class _Told:
    """A file that says how much of it was read. httpx takes its length from the descriptor."""

    def __init__(self, file: IO[bytes], sent: _Sent) -> None:
        self._file = file
        self._sent = sent

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._sent.add(len(data))
        return data


def _adapter(name: str, verb: str = "") -> str:
    return f"/v1/adapters/{_quoted(name)}" + (f"/{verb}" if verb else "")


def _alias(name: str) -> str:
    return f"/v1/aliases/{_quoted(name)}"


def _quoted(name: str) -> str:
    if name in ("", ".", ".."):  # these would be another route
        raise CommandFailed(f"no adapter or alias is named {name!r}; `livery adapters ls` shows those there are")
    return quote(name, safe="")


def _given(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _media_type(name: str) -> str:
    return "application/json" if name == CONFIG_NAME else "application/octet-stream"
