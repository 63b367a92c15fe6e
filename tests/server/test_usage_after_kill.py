"""Usage of servers on one database of which one is killed in the middle of a stream: nothing twice, little lost."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cli.processes import serving, url_in
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore, UsageStore
from livery.tenancy.meter import Counts
from livery.tenancy.usage import Question

PATIENCE_S = 60.0
PROMPT = [1000, 1001]


class Scene:
    """A data folder with a key for each server, so that what is counted for one is told apart."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        DataFolder(self.data).make()
        (folder / "adapters").mkdir()
        self.adapters = folder / "adapters"
        self.store = TenantStore.open(DataFolder(self.data).tenants_url(None))
        self.keys = [self.store.create_key("acme", occupied=lambda _: None)[:2] for _ in range(3)]

    def used(self, number: int | None = None) -> Counts:
        """What the database has, of one key or of all."""
        key = None if number is None else self.keys[number][0].id
        (line,) = UsageStore(self.store.database).report(Question(by=(), key=key))
        return line.counts

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"still not: {what}; the database has {self.used()}"
            time.sleep(0.02)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.store.close()


class Server:
    """One whose engine computes what it is told to."""

    def __init__(self, process: subprocess.Popen[str], printed: str, secret: str) -> None:
        self.process = process
        self._url = url_in(printed)
        self._headers = {"authorization": f"Bearer {secret}"}

    def compute(self, tokens: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("." * tokens)
        self.process.stdin.flush()

    @contextmanager
    def stream(self, max_tokens: int, tokens: int) -> Iterator[Iterator[int]]:
        """How many tokens there are with each event of an answer, of which so many are computed at once."""
        self.compute(tokens)  # an answer begins with its first token
        body = {
            "model": "smollm2-135m-instruct",
            "prompt": PROMPT,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        url = f"{self._url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=self._headers, timeout=PATIENCE_S) as answer:
            assert answer.status_code == 200
            yield (
                json.loads(line[6:])["usage"]["completion_tokens"]
                for line in answer.iter_lines()
                if line.startswith("data: {")
            )

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0


def reach(tokens: int, told: Iterator[int]) -> None:
    """Read on until so many tokens have come."""
    for count in told:
        if count >= tokens:
            return
    raise AssertionError(f"the stream ended before {tokens} tokens")


def test_a_killed_server_loses_what_it_had_not_written_and_nothing_is_counted_twice(scene: Scene) -> None:
    @contextmanager
    def started(number: int) -> Iterator[Server]:
        with serving(scene.adapters, scene.data, FAKE_STEPPED="1") as (process, printed):
            yield Server(process, printed, scene.keys[number][1])

    with started(0) as killed, started(1) as other, killed.stream(200, 5) as first, other.stream(9, 5) as second:
        for told in (first, second):
            reach(5, told)
        both = Counts(2, 2 * len(PROMPT), 0, 10)
        scene.until(lambda: scene.used() == both, "both streams are written while they run")
        killed.compute(3)
        reach(8, first)
        killed.process.kill()
        killed.process.wait()
        left = scene.used(0)
        assert 5 <= left.completion_tokens <= 8
        assert left == Counts(1, len(PROMPT), 0, left.completion_tokens)
        with started(2) as restarted:
            with restarted.stream(7, 7) as third:
                reach(7, third)
                list(third)
            other.compute(4)
            reach(9, second)
            list(second)
            restarted.end()
            other.end()
    assert scene.used(0) == left, "what was written before is as it was"
    assert [scene.used(number) for number in (1, 2)] == [Counts(1, 2, 0, 9), Counts(1, 2, 0, 7)]
    assert scene.used() == Counts(3, 6, 0, left.completion_tokens + 16)
