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
from livery.adding import AddOptions
from livery.commands.asking import CONNECT_S, Asking, CommandFailed, given, http_client
from livery.commands.progress import Tell, bar
from livery_adapters.fetching import open_adapter_files
from livery_adapters.profile import PROFILE_NAME, Profile, write_profile
from livery_adapters.registry import Sticky
from livery_adapters.tensor_file import CHUNK, CONFIG_NAME
from livery_adapters.weightless import BASE_SOURCE

WEIGHTS_TYPE = "application/octet-stream"
DEFAULT_URL = "http://127.0.0.1:8000"
CHANGE_S = 900.0  # a new version is fetched, checked and run before the answer
EVERYWHERE = Path("/")  # what its user may read, a command may


class Backend(Protocol):
    """The verbs on adapters and aliases, as AdapterManagement has them.

    Each raises CommandFailed, AdapterRefused or RegistryError.
    """

    async def ls(
        self,
        *,
        after: str,
        limit: int,
        state: str | None,
        source: str | None,
        search: str | None,
        tenant: str | None = None,
    ) -> Json: ...

    async def show(self, name: str) -> Json: ...

    async def versions(self, name: str, *, after: int | None, limit: int) -> Json: ...

    async def inspect(self, source: str, approximate: int) -> Json:
        """The coverage report of a directory or of what a URL holds."""
        ...

    async def limits(self) -> Json:
        """What an adapter may ask for to be taken in, by the names of the knobs; empty where a server doesn't say."""
        ...

    async def add(self, name: str, source: str, options: AddOptions) -> Json:
        """Take in a directory, or what a URL holds."""
        ...

    async def push(self, name: str, file: Path, options: AddOptions) -> Json:
        """Take in new weights for the configuration and profile of the active version."""
        ...

    async def profile(self, name: str) -> Json: ...

    async def set_profile(self, name: str, profile: Profile, expected_generation: int | None = None) -> Json: ...

    async def activate(self, name: str, version: str, expected_generation: int | None = None) -> Json: ...

    async def rollback(self, name: str, expected_generation: int | None = None) -> Json: ...

    async def retire(self, name: str, *, drain_s: float = 0.0, expected_generation: int | None = None) -> Json: ...

    async def pin(self, name: str, pinned: bool) -> Json: ...

    async def prefetch(self, name: str) -> Json: ...

    async def share(self, name: str, tenant: str, *, shared: bool = True) -> Json: ...

    async def aliases(self, *, after: str, limit: int) -> Json: ...

    async def alias(self, name: str) -> Json: ...

    async def set_alias(
        self,
        name: str,
        targets: Iterable[tuple[str, float]],
        sticky: Sticky,
        expected_generation: int | None = None,
    ) -> Json: ...

    async def delete_alias(self, name: str, expected_generation: int | None = None) -> Json: ...


def is_remote(source: str) -> bool:
    """Whether a source is a URL, or the base itself; everything else is a directory here."""
    return "://" in source or source == BASE_SOURCE


def local_directory(source: str) -> Path:
    """A directory that a command was pointed at. Raises CommandFailed when there is none."""
    path = Path(os.path.abspath(source))  # `.` has no name that a message could give; links stay links
    if not path.is_dir():
        raise CommandFailed(
            f"{source} is not a directory; give the one that PEFT's save_pretrained wrote, or a source such as "
            "hf://org/name"
        )
    return path


def new_directory(out: Path) -> Path:
    """Where a command is to put a directory of its own, which takes its place whole. Raises CommandFailed."""
    path = Path(os.path.abspath(out.expanduser()))
    if Path.cwd().is_relative_to(path):
        raise CommandFailed(
            f"--out is {path}, and this command stands in there, so that it can't be replaced; name a new one, as "
            f"in --out {path / 'my-adapter'}"
        )
    return path


class HttpBackend(Asking):
    """Asks a running server. Made by `open_server`."""

    hint = "is `livery serve` running there? --url or LIVERY_URL names another, --data DIR needs no server"

    async def ls(
        self,
        *,
        after: str,
        limit: int,
        state: str | None,
        source: str | None,
        search: str | None,
        tenant: str | None = None,
    ) -> Json:
        asked = {"after": after or None, "limit": limit, "state": state, "source": source}
        params = given({**asked, "search": search, "tenant": tenant})
        return await self._ask("GET", "/v1/adapters", {"base", "data"}, params=params)

    async def show(self, name: str) -> Json:
        return await self._ask("GET", _adapter(name), {"name", "state"})

    async def versions(self, name: str, *, after: int | None, limit: int) -> Json:
        params = given({"after": after, "limit": limit})
        return await self._ask("GET", _adapter(name, "versions"), {"name", "data"}, params=params)

    async def inspect(self, source: str, approximate: int) -> Json:
        path = "/v1/adapters:check"
        if is_remote(source):
            body = given({"source": source, "approximate": approximate or None})
            return await self._change("POST", path, {"ok", "coverage"}, json=body)
        return await self._upload(path, source, {"approximate": approximate or None}, {"ok", "coverage"})

    async def limits(self) -> Json:
        found: Json = (await self._ask("GET", "/v1/status", {"server"}, params={"limit": 0}))["server"].get(
            "limits", {}
        )
        return found

    async def base_digest(self) -> str:
        """Of the base that is served; empty where it isn't for this key to see, or the server doesn't say."""
        cards = (await self._ask("GET", "/v1/models", {"data"}))["data"]
        return next((card.get("digest") or "" for card in cards if not card.get("parent")), "")

    async def add(self, name: str, source: str, options: AddOptions) -> Json:
        wanted: Json = {
            "pinned": options.pinned,
            "expected_generation": options.expected_generation,
            "approximate": options.approximate or None,
            "activate": None if options.activate else False,
        }
        if is_remote(source):
            profile_json = options.profile.to_json() if options.profile is not None else None
            body = given({"source": source, **wanted, "profile": profile_json})
            return await self._change("PUT", _adapter(name), {"name", "state"}, json=body)
        profile = None if options.profile is None else write_profile(options.profile)
        return await self._upload(_adapter(name, "versions"), source, wanted, {"name", "state"}, profile)

    async def push(self, name: str, file: Path, options: AddOptions) -> Json:
        params = given(
            {
                "expected_generation": options.expected_generation,
                "activate": None if options.activate else False,
                "keep": options.keep or None,
                "running": None if options.running == "finish" else options.running,
            }
        )
        with file.open("rb") as stream:
            total = os.fstat(stream.fileno()).st_size
            with bar(f"sending {file.name}", total) as tell:
                headers = {"content-type": WEIGHTS_TYPE, "content-length": str(total)}
                content = pieces(_Told(stream, _Sent(tell)))
                path = _adapter(name, "versions")
                return await self._change(
                    "POST", path, {"name", "pushed"}, params=params, headers=headers, content=content
                )

    async def profile(self, name: str) -> Json:
        return await self._ask("GET", _adapter(name, "profile"), {"name", "profile"})

    async def set_profile(self, name: str, profile: Profile, expected_generation: int | None = None) -> Json:
        body = given({"profile": profile.to_json(), "expected_generation": expected_generation})
        return await self._change("PUT", _adapter(name, "profile"), {"name", "state"}, json=body)

    async def activate(self, name: str, version: str, expected_generation: int | None = None) -> Json:
        body = given({"version": version, "expected_generation": expected_generation})
        return await self._change("POST", _adapter(name, "activate"), {"name", "state"}, json=body)

    async def rollback(self, name: str, expected_generation: int | None = None) -> Json:
        body = given({"expected_generation": expected_generation})
        return await self._change("POST", _adapter(name, "rollback"), {"name", "state"}, json=body)

    async def retire(self, name: str, *, drain_s: float = 0.0, expected_generation: int | None = None) -> Json:
        params = given({"drain": drain_s or None, "expected_generation": expected_generation})
        return await self._change("DELETE", _adapter(name), {"name", "state"}, params=params)

    async def pin(self, name: str, pinned: bool) -> Json:
        return await self._change("POST", _adapter(name, "pin" if pinned else "unpin"), {"name", "state"})

    async def prefetch(self, name: str) -> Json:
        return await self._change("POST", _adapter(name, "prefetch"), {"name", "state"})

    async def share(self, name: str, tenant: str, *, shared: bool = True) -> Json:
        verb = "share" if shared else "unshare"
        return await self._change("POST", _adapter(name, verb), {"name", "shared_with"}, json={"tenant": tenant})

    async def aliases(self, *, after: str, limit: int) -> Json:
        return await self._ask("GET", "/v1/aliases", {"data"}, params=given({"after": after or None, "limit": limit}))

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
        body = given({"targets": listed, "sticky": sticky, "expected_generation": expected_generation})
        return await self._change("PUT", _alias(name), {"name", "targets"}, json=body)

    async def delete_alias(self, name: str, expected_generation: int | None = None) -> Json:
        params = given({"expected_generation": expected_generation})
        return await self._change("DELETE", _alias(name), {"name", "deleted"}, params=params)

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
            return await self._change("POST", path, fields, params=given(params), files=parts)

    async def _change(self, method: str, path: str, fields: set[str], **sent: Any) -> Json:  # noqa: ANN401
        return await self._ask(method, path, fields, timeout=httpx.Timeout(CHANGE_S, connect=CONNECT_S), **sent)


@asynccontextmanager
async def open_server(url: str, key: str | None) -> AsyncIterator[HttpBackend]:
    """A server to ask. Raises CommandFailed for an address or a key that can't be used."""
    async with http_client(url, key, DEFAULT_URL) as client:
        yield HttpBackend(client, url)


async def pieces(stream: Readable) -> AsyncIterator[bytes]:
    """A file in pieces."""
    while piece := stream.read(CHUNK):
        yield piece


class Readable(Protocol):
    """What a file is read by."""

    def read(self, size: int = -1, /) -> bytes: ...


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


def _media_type(name: str) -> str:
    return "application/json" if name == CONFIG_NAME else WEIGHTS_TYPE
