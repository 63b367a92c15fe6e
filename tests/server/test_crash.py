"""`kill -9` at any moment: what a server acknowledged is there after the restart, what it didn't is whole or absent.

The server is the real one over the fake engine; adapters, registry and files are real. LIVERY_KILL_ROUNDS sets how
often it is killed.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from api.peft_files import make_adapter
from cli.processes import ENVIRON, SERVE_FAKE, url_in
from livery_adapters.manifest import read_manifest
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import FILE_NAMES

ROUNDS = int(os.environ.get("LIVERY_KILL_ROUNDS", "4"))
PIECE = 256  # bytes
NAMES = ("pirate", "corsair", "team/admiral")


@dataclass
class Book:
    """What clients were told: per name every version that may be active now, None for none, and its history."""

    possible: dict[str, set[str | None]] = field(default_factory=lambda: {name: {None} for name in NAMES})
    operations: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def begin(self, name: str, outcome: str | None) -> None:
        """An operation is sent: from now on its outcome may be what holds."""
        self.possible[name] |= {outcome}

    def acknowledged(self, name: str, outcome: str | None) -> None:
        with self.changed:
            self.possible[name] = {outcome}
            self.operations += 1
            self.changed.notify_all()

    def wait(self, wanted: int, clients: Sequence[Future[None]]) -> None:
        """Until so many operations are acknowledged, or a client is at its end."""
        for client in clients:
            client.add_done_callback(self._wake)
        with self.changed:
            self.changed.wait_for(lambda: self.operations >= wanted or any(client.done() for client in clients))

    def _wake(self, _: object) -> None:
        with self.changed:
            self.changed.notify_all()


@contextmanager
def killed_server(root: Path, data: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [*SERVE_FAKE, "serve", "--model", "smollm2-135m-instruct", "--adapters", str(root), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data", str(data)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRON
    )
    assert process.stdout is not None
    printed = ""
    try:
        for line in process.stdout:
            printed += line
            if "Ctrl-C" in line:
                break
        yield process, url_in(printed)
    finally:
        process.kill()
        process.communicate()


def bring(client: httpx.Client, name: str, folder: Path, *, upload: bool) -> httpx.Response:
    """Send an adapter's two files in small pieces, so that servers die in between, or have the server read them."""
    if not upload:
        return client.put(f"/v1/adapters/{name}", json={"source": str(folder)})
    files = {file: (folder / file).read_bytes() for file in FILE_NAMES}
    whole = client.build_request("POST", f"/v1/adapters/{name}/versions", files=files)
    body = whole.read()
    pieces = (body[start : start + PIECE] for start in range(0, len(body), PIECE))
    return client.post(whole.url, content=pieces, headers=whole.headers)


def change(client: httpx.Client, book: Book, pool: dict[str, Path], dice: random.Random, name: str) -> None:
    """One random operation on one name; what it may lead to is noted before it is sent."""
    active = next(iter(book.possible[name]))
    if active is None or dice.random() < 0.5:
        digest = dice.choice(sorted(pool))
        book.begin(name, digest)
        answer = bring(client, name, pool[digest], upload=dice.random() < 0.5)
        outcome: str | None = digest
    elif dice.random() < 0.5:
        history = client.get(f"/v1/adapters/{name}/versions").json()["data"]
        digest = dice.choice(history)["digest"]
        book.begin(name, digest)
        answer = client.post(f"/v1/adapters/{name}/activate", json={"version": digest})
        outcome = digest
    else:
        book.begin(name, None)
        answer = client.delete(f"/v1/adapters/{name}")
        outcome = None
    assert answer.status_code == 200, answer.text
    book.acknowledged(name, outcome)


def change_until_dead(url: str, book: Book, pool: dict[str, Path], seed: int, name: str) -> None:
    dice = random.Random(f"{seed} {name}")
    with httpx.Client(base_url=url, timeout=30) as client:
        try:
            while True:
                change(client, book, pool, dice, name)
        except httpx.TransportError:
            return


def check(url: str, book: Book, pool: dict[str, Path]) -> None:
    """What is there is what was acknowledged, or what was under way when the server died; and it serves."""
    for name in NAMES:
        answer = httpx.get(f"{url}/v1/adapters/{name}")
        found = answer.json()["digest"] if answer.status_code == 200 else None
        assert found in book.possible[name], f"{name}: {found} is none of {book.possible[name]}"
        book.possible[name] = {found}
        body = {"model": name, "prompt": [3, 4], "max_tokens": 1}
        served = httpx.post(f"{url}/v1/completions", json=body)
        assert served.status_code == (404 if found is None else 200), served.text
        if found is not None:
            assert served.headers["x-livery-adapter"] == f"{name}@{found[:12]}"


@pytest.mark.timeout(60 + 12 * ROUNDS)
def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    root, data = tmp_path / "adapters", tmp_path / "data"
    root.mkdir()
    folders = [make_adapter(root / ".pool" / str(seed), seed=seed) for seed in range(4)]
    pool = {read_manifest(folder).digest: folder for folder in folders}
    book = Book()
    for number in range(ROUNDS):
        with killed_server(root, data) as (process, url):
            check(url, book, pool)
            before = book.operations
            with ThreadPoolExecutor(len(NAMES)) as clients:
                changing = [clients.submit(change_until_dead, url, book, pool, number, name) for name in NAMES]
                wanted = before + random.Random(number).randrange(1, 40)
                book.wait(wanted, changing)
                process.kill()  # at this very moment, whatever is under way
            for client in changing:
                client.result()  # whatever a client saw that it shouldn't have
        with sqlite3.connect(data / "livery.db") as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()
    assert book.operations > 5 * ROUNDS
    with killed_server(root, data) as (_, url):
        check(url, book, pool)
    gc = [sys.executable, "-m", "livery", "adapters", "gc", "--data", str(data), "--json"]
    done = subprocess.run(gc, capture_output=True, text=True, env=ENVIRON, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(data / "livery.db") as database:
        referred = {row[0] for row in database.execute("SELECT DISTINCT weights FROM versions")}
    database.close()
    store = BlobStore(data / "adapters")
    assert set(store.digests()) == referred, "an orphan, or a version without its files"
    assert all(store.verify(digest) for digest in referred)
    assert list((data / "adapters" / "incoming").iterdir()) == []
