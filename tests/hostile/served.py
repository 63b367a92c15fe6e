"""The corpus against a real server: what is uploaded or named to it, and what it holds afterwards."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from hostile.base import good, model
from hostile.case import Case, write
from hostile.taking import BAD, GOOD, Outcome, cannot_build
from livery.models import resolve_model
from livery_adapters.tensor_file import FILE_NAMES
from server.running import SMALL, TOKENIZER_FILES, RunningServer, livery_serve

BOUNDARY = "hostile-9f2c"
PROMPT = "Once upon a time there was an adapter that"


@dataclass(frozen=True)
class Neighbour:
    """A client of the good adapter that asks for the same stream over and over while something else goes on."""

    url: str
    reference: str

    @contextmanager
    def streaming(self) -> Iterator[list[str]]:
        """The answers meanwhile, one at least; all are complete when the context ends."""
        answers: list[str] = []
        stop = threading.Event()

        def ask() -> None:
            with client(self.url) as asking:
                while not stop.is_set() or not answers:
                    answers.append(stream(asking, GOOD))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield answers
        finally:
            stop.set()
            thread.join()


class Served:
    """A server with one good adapter, and a directory that it may read sources from."""

    def __init__(self, server: RunningServer, root: Path) -> None:
        self.url = server.url
        self.pid = server.pid
        self.root = root
        self.client = client(server.url)
        self.neighbour = Neighbour(server.url, stream(self.client, GOOD))

    def take(self, case: Case) -> Outcome:
        """Upload the case, or name its directory where the trick is in that: first to be checked, then to be added."""
        directory = self.root / "allowed" / "adapter"
        directory.parent.mkdir()
        try:
            reason = cannot_build(case, directory)
            if reason:
                return Outcome(case, skipped=reason)
            return self._answered(case, *(self._named(directory) if case.local else self._uploaded(directory)))
        finally:
            shutil.rmtree(directory.parent)
            outside = self.root / "outside"
            if outside.is_dir():
                shutil.rmtree(outside)
            else:
                outside.unlink(missing_ok=True)

    def _named(self, directory: Path) -> tuple[httpx.Response, httpx.Response]:
        source = {"source": str(directory)}
        return (
            self.client.post("/v1/adapters:check", json=source),
            self.client.put(f"/v1/adapters/{BAD}", json=source),
        )

    def _uploaded(self, directory: Path) -> tuple[httpx.Response, httpx.Response]:
        files = {name: (directory / name).read_bytes() for name in FILE_NAMES if (directory / name).exists()}
        return (
            self.client.post("/v1/adapters:check", files=files),
            self.client.post(f"/v1/adapters/{BAD}/versions", files=files),
        )

    def _answered(self, case: Case, checked: httpx.Response, added: httpx.Response) -> Outcome:
        assert checked.status_code == added.status_code, f"{checked.text} / {added.text}"
        if added.status_code == 200:
            self.client.delete(f"/v1/adapters/{BAD}").raise_for_status()
            return Outcome(case)
        assert 400 <= added.status_code < 500, added.text
        assert checked.json() == added.json()
        error = added.json()["error"]
        return Outcome(case, error["code"], error["message"], tuple(self.left_behind()))

    def left_behind(self) -> list[str]:
        """What the server knows or holds and shouldn't. Only while nobody adds anything."""
        data = self.root / "data"
        listed: list[dict[str, Any]] = self.client.get("/v1/adapters").json()["data"]
        found = [f"name {entry['name']}" for entry in listed if entry["name"] != GOOD]
        found += [f"incoming {path.name}" for folder in data.rglob("incoming") for path in folder.iterdir()]
        return found

    def descriptors(self) -> int:
        """Open files of the server and its engine."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in [self.pid, *_children(self.pid)])


def upload(*parts: tuple[str, bytes], end: bool = True) -> dict[str, Any]:
    """A multipart body of parts with these headers, as a request's arguments; without an `end` it is cut."""
    body = b"".join(
        b"--%s\r\n%s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), head.encode("utf-8", "surrogatepass"), data)
        for head, data in parts
    )
    body += f"--{BOUNDARY}--\r\n".encode() if end else b""
    return {"content": body, "headers": {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}}


@contextmanager
def serving(root: Path) -> Iterator[Served]:
    """A server over the corpus's base, on the real engine."""
    base, folder = root / "tiny-llama", root / "adapters"
    model().save_pretrained(base)
    for name in TOKENIZER_FILES:
        shutil.copy(resolve_model("smollm2-135m-instruct").path / name, base / name)
    folder.mkdir()
    write(folder / GOOD, *good())
    flags = ("--allow-source", str(root / "allowed"), "--kernels", "torch", "--threads", "1", *SMALL)
    with livery_serve(base, folder, root, *flags) as server:
        served = Served(server, root)
        with closing(served.client):
            yield served


def client(url: str) -> httpx.Client:
    """A client with a connection for each request."""
    return httpx.Client(base_url=url, timeout=120, limits=httpx.Limits(max_keepalive_connections=0))


def stream(asking: httpx.Client, name: str) -> str:
    """A whole streamed answer, token by token, always the same."""
    body = {"model": name, "prompt": PROMPT, "max_tokens": 48, "temperature": 0, "stream": True, "ignore_eos": True}
    with asking.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
