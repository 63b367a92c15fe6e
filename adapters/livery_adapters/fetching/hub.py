"""A model repository of the Hugging Face hub, fetched at one commit.

The revision is turned into a commit first (`GET /api/models/ORG/NAME/revision/REVISION`), then both files and those
of BESIDE_NAMES that are there are read at that commit (`GET /ORG/NAME/resolve/COMMIT/FILE`), so that they are of one
state whatever is pushed meanwhile. Nothing else of the repository is asked for. HF_ENDPOINT names another hub,
HF_TOKEN is the credential, HF_HUB_OFFLINE forbids it all; neither the hub's cache nor a token saved on disk is used.

A hub answers with a redirect to where its large files are. The token goes to the hub alone; a redirect away from its
host must be https to a host by name, so that no answer leads to an address inside the operator's network.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import quote

import httpx

from livery_adapters.beside import BESIDE_NAMES, is_wanted
from livery_adapters.fetching.interrupt import Interrupt, Sink
from livery_adapters.fetching.network import (
    NetworkLimits,
    Origin,
    Progress,
    Transfer,
    forbidden,
    not_found,
    unreachable,
)
from livery_adapters.fetching.spec import HubSource
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import CHUNK, CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME

_ENDPOINT = "https://huggingface.co"
_MAX_INFO_BYTES = 8 << 20
_MAX_REDIRECTS = 5
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PICKLES = ("adapter_model.bin", "adapter_model.pt")
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


def fetch_hub(
    source: HubSource, incoming: Sink, progress: Progress, limits: NetworkLimits, interrupt: Interrupt
) -> Origin:
    """Stream the two files of a repository into `incoming`. Raises AdapterRefused; see `livery_adapters.fetching`."""
    with httpx.Client(timeout=httpx.Timeout(limits.stall_s, connect=limits.connect_s)) as client:
        hub = _Hub(client, source, limits, os.environ, interrupt)
        commit, sizes = hub.state()
        for name, size in sizes.items():
            incoming.check_size(name, size or 0)
        transfer = Transfer(source, sum(size or 0 for size in sizes.values()), progress, limits)
        for name, size in sizes.items():
            hub.file(commit, name, size, incoming, transfer)
    pinned = HubSource(source.repo, commit, source.folder)
    return Origin(str(pinned), {"revision": commit})


class _Hub:
    """The requests of one fetch."""

    def __init__(
        self,
        client: httpx.Client,
        source: HubSource,
        limits: NetworkLimits,
        environment: Mapping[str, str],
        interrupt: Interrupt,
    ) -> None:
        """Raises AdapterRefused (source_unreachable): HF_ENDPOINT is no address, or HF_HUB_OFFLINE is set."""
        self._client = client
        self._source = source
        self._limits = limits
        self._interrupt = interrupt
        self._deadline = time.monotonic() + limits.total_s
        endpoint = _address(environment.get("HF_ENDPOINT", "").strip() or _ENDPOINT)
        if endpoint is None:
            raise unreachable(source, "HF_ENDPOINT is no http or https address")
        self._endpoint = endpoint
        if environment.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE"):
            raise unreachable(source, "HF_HUB_OFFLINE is set")
        self._token = environment.get("HF_TOKEN", "").strip()

    def state(self) -> tuple[str, dict[str, int | None]]:
        """The commit that the revision stands for, and the files to take with their sizes in bytes, where told."""
        revision = quote(self._source.revision or "main", safe="")
        with self._get(f"/api/models/{self._source.repo}/revision/{revision}?blobs=true") as response:
            body = b""
            for chunk in self._pieces(response):
                body += chunk
                if len(body) > _MAX_INFO_BYTES:
                    raise unreachable(self._source, f"the hub describes it in over {_MAX_INFO_BYTES} bytes")
        try:
            info = json.loads(body)
            commit = info["sha"]
            files = {entry["rfilename"]: entry.get("size") for entry in info["siblings"]}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise unreachable(self._source, "the hub's description of it can't be understood") from None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise unreachable(self._source, "the hub names no commit for it")
        wanted = (*FILE_NAMES, *BESIDE_NAMES, *_PICKLES)
        here = {name: files[path] for name in wanted if (path := self._path(name)) in files}
        self._check_files(here)
        return commit, {
            name: known
            for name, size in here.items()
            if name not in _PICKLES and is_wanted(name, known := size if type(size) is int else None)
        }

    def _check_files(self, here: Mapping[str, object]) -> None:
        if CONFIG_NAME not in here:
            raise AdapterRefused(
                "missing_config",
                f"no {CONFIG_NAME} in {self._source}; name one (with its folder) that save_pretrained made",
            )
        if WEIGHTS_NAME in here:
            return
        if any(name in here for name in _PICKLES):
            raise AdapterRefused(
                "pickle_only",
                f"{self._source} holds its weights only as a pickle, which can run code and is never fetched; save "
                f"them as {WEIGHTS_NAME} (PEFT: save_pretrained(..., safe_serialization=True))",
            )
        raise AdapterRefused(
            "missing_weights", f"no {WEIGHTS_NAME} in {self._source}; upload what PEFT's save_pretrained made"
        )

    def file(self, commit: str, name: str, size: int | None, incoming: Sink, transfer: Transfer) -> None:
        """Stream one file at a commit into `incoming`; `size` in bytes as the hub told it, None when it didn't."""
        with self._get(f"/{self._source.repo}/resolve/{commit}/{quote(self._path(name))}") as response:
            length = response.headers.get("content-length", "")
            if size is None and re.fullmatch(r"[0-9]{1,18}", length):
                size = int(length)
            incoming.begin(name, size)
            for chunk in self._pieces(response):
                incoming.write(name, chunk)
                transfer.came(len(chunk))

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self._source.folder, name))

    def _pieces(self, response: httpx.Response) -> Iterator[bytearray]:
        """The body in pieces of CHUNK bytes; the time and the interrupt are looked at whenever any come, so a hub that
        sends a few at a time is given up as soon. Raises AdapterRefused, Interrupted.
        """
        gathered = bytearray()
        try:
            for piece in response.iter_raw():
                self._interrupt.check()
                if time.monotonic() > self._deadline:
                    raise unreachable(self._source, f"fetching took over {self._limits.total_s:g} s")
                gathered += piece
                if len(gathered) >= CHUNK:
                    yield gathered
                    gathered = bytearray()
        except httpx.HTTPError as error:
            raise unreachable(self._source, f"the connection broke off ({type(error).__name__})") from None
        if gathered:
            yield gathered

    @contextmanager
    def _get(self, path: str) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read; retried while nothing of it was used. Raises AdapterRefused."""
        response = self._answer(path)
        try:
            yield response
        finally:
            response.close()

    def _answer(self, path: str) -> httpx.Response:
        reason = ""
        for attempt in range(self._limits.retries + 1):
            if attempt:
                self._interrupt.pause(self._limits.backoff_s * 2 ** (attempt - 1))
            try:
                response = self._follow(path)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = f"no answer from the hub ({type(error).__name__})"
                continue
            if response.status_code == 200:
                return response
            response.close()
            if response.status_code not in _TRY_AGAIN:
                raise self._refusal(response.status_code)
            reason = f"the hub answered {response.status_code}"
        raise unreachable(self._source, reason)

    def _follow(self, path: str) -> httpx.Response:
        """The answer at the end of the redirects, each checked. Raises AdapterRefused, httpx.HTTPError."""
        url = httpx.URL(f"{str(self._endpoint).rstrip('/')}{path}")
        for _ in range(_MAX_REDIRECTS + 1):
            # Plain bytes: what is counted, hashed and announced is the file itself.
            headers = {"accept-encoding": "identity", "user-agent": "livery"}
            if self._token and _origin(url) == _origin(self._endpoint):
                headers["authorization"] = f"Bearer {self._token}"
            response = self._client.send(
                self._client.build_request("GET", url, headers=headers), stream=True, follow_redirects=False
            )
            if not response.has_redirect_location:
                return response
            response.close()
            url = self._checked(url.join(response.headers["location"]))
        raise unreachable(self._source, f"the hub redirects more than {_MAX_REDIRECTS} times")

    def _checked(self, url: httpx.URL) -> httpx.URL:
        """A redirect's target. Raises AdapterRefused (source_unreachable) when it leads where it must not."""
        same_host = url.host == self._endpoint.host and url.scheme in (self._endpoint.scheme, "https")
        if url.userinfo or not (same_host or (url.scheme == "https" and "." in url.host and not _is_address(url.host))):
            raise unreachable(self._source, "the hub redirects to an address that is not followed")
        return url

    def _refusal(self, status: int) -> AdapterRefused:
        if status in (401, 403):  # the hub also says 401 of what isn't there
            return forbidden(
                self._source,
                f"the hub answered {status}: check the spelling, and for a private or gated repository set HF_TOKEN "
                "to a token that may read it",
            )
        if status == 404:
            return not_found(self._source, "check the repository, the revision and the folder")
        return unreachable(self._source, f"the hub answered {status}")


def _address(text: str) -> httpx.URL | None:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return None
    return url if url.scheme in ("http", "https") and url.host else None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return not re.search(r"[A-Za-z]", host.rpartition(".")[2])  # 127.1 and 0x7f.1 are addresses too
    return True
