"""A small hub on 127.0.0.1: the three addresses of a model repository, and whatever a test wants to go wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

REPO = "team/pirate"
Answer = Callable[[BaseHTTPRequestHandler], None]


class HubServer:
    """Serves commits of one repository; `special` answers take the place of a path's own, once per entry."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []  # path and authorization
        self.special: dict[str, list[Answer]] = {}
        self.tells_sizes = True
        self.released = threading.Event()  # set at the end: lets answers that hang finish
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.tell(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def push(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit of the whole repository, which the branch then names."""
        commit = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.revisions[branch] = commit
        return commit

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        self.requests.append((path, handler.headers["authorization"]))
        for end, answers in self.special.items():
            if path.endswith(end) and answers:
                answers.pop(0)(handler)
                return
        info, tree, resolve = f"/api/models/{REPO}/revision/", f"/api/models/{REPO}/tree/", f"/{REPO}/resolve/"
        if path.startswith(info):
            self._info(handler, unquote(path.removeprefix(info)))
        elif path.startswith(tree):
            files = self.commits[path.removeprefix(tree)]
            oids = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
            listed = [{"type": "file", "path": name, "size": len(files[name]), "oid": oids[name]} for name in files]
            body(json.dumps(listed).encode())(handler)
        elif path.startswith(resolve):
            commit, _, file = path.removeprefix(resolve).partition("/")
            data = self.commits.get(commit, {}).get(unquote(file))
            status(404)(handler) if data is None else body(data)(handler)
        else:
            status(404)(handler)

    def tell(self, handler: BaseHTTPRequestHandler) -> None:
        """What huggingface_hub asks of a file before it gets it."""
        commit, _, file = handler.path.partition("?")[0].removeprefix(f"/{REPO}/resolve/").partition("/")
        data = self.commits.get(commit, {}).get(unquote(file))
        if data is None:
            status(404)(handler)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("ETag", hashlib.sha1(data).hexdigest())
        handler.send_header("X-Repo-Commit", commit)
        handler.end_headers()

    def _info(self, handler: BaseHTTPRequestHandler, revision: str) -> None:
        commit = self.revisions.get(revision, revision)
        if commit not in self.commits:
            status(404)(handler)
            return
        files = self.commits[commit]
        siblings = [{"rfilename": name} | ({"size": len(files[name])} if self.tells_sizes else {}) for name in files]
        body(json.dumps({"id": REPO, "sha": commit, "siblings": siblings}).encode())(handler)


def body(data: bytes, *, claims: int | None = None) -> Answer:
    """200 with these bytes; `claims` announces another length and ends the connection after the bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if claims is None else claims))
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = claims is not None

    return answer


def status(code: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def redirect(location: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def hang(hub: HubServer, first: bytes = b"") -> Answer:
    """Announces 1000 bytes, sends some, and says no more until the hub is closed."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(first)
        hub.released.wait(60)
        handler.close_connection = True

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Bytes without an announced length until the other side goes."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        handler.close_connection = True


@contextmanager
def used_hub() -> Iterator[HubServer]:
    """A hub that huggingface_hub in this process asks, without a token."""
    server = HubServer()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", server.url)
        environment.setenv("NO_PROXY", "*")
        environment.delenv("HF_HUB_OFFLINE", raising=False)
        environment.delenv("HF_TOKEN", raising=False)
        try:
            yield server
        finally:
            server.close()
