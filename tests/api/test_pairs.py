"""What one request for scores may cost: pairs are counted before they are encoded, and encoded in turns of tenants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.live_server import LiveServer, Setup
from api.test_admission import assert_nothing_is_held
from api.test_vectors import _saved
from livery.beside import ENCODING, LONG
from livery.jobs import PoolingJob
from livery.lease import Caller
from livery.pooling import EACH, PIECE
from livery.tenancy import Limits, Principal
from livery.text import Tokenizer

MODEL = "ranks"  # an adapter of one class, to which a pair is one text
QUERY = "ahoy " * 40


@pytest.fixture(scope="module")
def live(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    _saved(folder / "adapters")
    server = LiveServer(Setup(max_model_len=256), tokenizer, folder)
    server.start()
    yield server
    server.stop()


class Encoding:
    """Watches what encodes pairs; the first one waits until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, waits: bool = False) -> None:
        self.threads: list[str] = []
        self.began, self.go = threading.Event(), threading.Event()
        real = Tokenizer.encode_pair

        def encode_pair(of: Tokenizer, *arguments: Any) -> list[int]:
            self.threads.append(threading.current_thread().name)
            self.began.set()
            assert not waits or self.go.wait(30)
            return real(of, *arguments)

        monkeypatch.setattr(Tokenizer, "encode_pair", encode_pair)


@pytest.fixture(scope="module")
def key(live: LiveServer) -> str:
    return live.make_key("acme")


def score(server: LiveServer, query: str, count: int, key: str) -> httpx.Response:
    body = {"model": MODEL, "text_1": query, "text_2": [f"matey {number}" for number in range(count)]}
    return httpx.post(f"{server.url}/v1/score", json=body, headers={"authorization": f"Bearer {key}"}, timeout=30)


def pairs_of(principal: Principal, query: str, count: int) -> PoolingJob:
    texts = [query, *(f"matey {number}" for number in range(count))]
    pairs = [(0, number + 1) for number in range(count)]
    return PoolingJob(MODEL, "score", texts, "req_1", "text_2", pairs, caller=Caller(None, principal))


def all_threads_meet() -> None:
    """What they were doing is done."""
    threads = ENCODING._threads._max_workers
    meeting = threading.Barrier(threads)
    for one in [ENCODING.submit("acme", lambda: meeting.wait(30)) for _ in range(threads)]:
        one.result(30)


def test_pairs_count_as_the_texts_that_they_make_before_any_is_encoded(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = live.make_key("few", limits={"tokens_per_minute": 2000})
    assert score(live, QUERY[:100], 10, few).status_code == 200  # who used nothing yet may ask for anything
    encoding = Encoding(monkeypatch)
    refused = score(live, QUERY, 100, few)  # the texts by themselves would fit
    assert (refused.status_code, encoding.threads) == (429, [])
    assert live.call(live.gate.held()).tokens == 0


def test_what_is_too_long_for_the_model_ends_with_the_first_pair_that_is(
    live: LiveServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = Encoding(monkeypatch)
    answer = score(live, QUERY * 4, 50, key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert len(encoding.threads) == 1


def test_whoever_leaves_has_no_more_than_a_piece_encoded(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the threads that tenants take in turn."""
    encoding = Encoding(monkeypatch, waits=True)
    who = Principal("acme", "user", "k1", limits=Limits(concurrent_requests=1, tokens_per_minute=1_000_000))
    size = EACH + len(QUERY) + len("matey 000")
    job = pairs_of(who, QUERY, 4 * PIECE // size)

    async def leave() -> None:
        pooling = asyncio.ensure_future(live.service.pool(job))
        assert await asyncio.to_thread(encoding.began.wait, 30)
        pooling.cancel()
        await asyncio.gather(pooling, return_exceptions=True)

    live.call(leave())
    assert_nothing_is_held(live.service)
    encoding.go.set()
    for _ in range(3):  # what it would have encoded next would have had its turn
        all_threads_meet()
    assert 1 < len(encoding.threads) <= PIECE // (size - 2)
    assert {name.rpartition("_")[0] for name in encoding.threads} == {"livery-encoding"}


def test_other_tenants_have_their_turns_between_the_pieces(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = Encoding(monkeypatch, waits=True)
    size = EACH + len(QUERY) + len("matey 000")
    count = 4 * PIECE // size
    others = ENCODING._threads._max_workers - 1
    busy, held = threading.Barrier(others + 1), threading.Event()

    def hold() -> None:
        busy.wait(30)
        held.wait(30)

    async def together() -> int:
        pooling = asyncio.ensure_future(live.service.pool(pairs_of(Principal("acme", "user", "k1"), QUERY, count)))
        assert await asyncio.to_thread(encoding.began.wait, 30)
        between = ENCODING.submit("other", lambda: len(encoding.threads))
        encoding.go.set()
        made = await asyncio.wrap_future(between)
        (await pooling).answer.close()
        return made

    holding = [ENCODING.submit("nobody", hold) for _ in range(others)]  # but for one thread all are busy
    busy.wait(30)
    try:
        assert 1 < live.call(together()) <= PIECE // (size - 2) < count == len(encoding.threads)
    finally:
        held.set()
        for one in holding:
            one.result(30)


def test_long_lists_for_vectors_are_encoded_in_the_same_turns(
    live: LiveServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    real = Tokenizer.encode

    def encode(of: Tokenizer, *arguments: Any) -> list[int]:
        threads.append(threading.current_thread().name)
        return real(of, *arguments)

    monkeypatch.setattr(Tokenizer, "encode", encode)
    few, many = ["ahoy"] * 3, ["ahoy " * 20] * (LONG // 100 + 1)
    for inputs in (few, many):
        body, headers = {"model": "embeds", "input": inputs}, {"authorization": f"Bearer {key}"}
        answer = httpx.post(f"{live.url}/v1/embeddings", json=body, headers=headers, timeout=30)
        assert len(answer.json()["data"]) == len(inputs)
    assert not any(name.startswith("livery-encoding") for name in threads[: len(few)])
    assert all(name.startswith("livery-encoding") for name in threads[len(few) :])
    assert len(threads) == len(few) + len(many)
