"""What becomes of requests under way when their adapter gets new weights: they finish, or end with what they have."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from api.test_push import digest_of, push, upload
from livery.engine.base import GenerationRequest
from livery.engine.fake import Behaviour
from livery.superseding import Superseded

TOKENS = 6


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for seed in range(8):
        make_adapter(folder / str(seed), seed=seed)
    return folder


@pytest.fixture
def live(serve: Serve, saved: Path) -> LiveServer:
    """A server that answers a token when it is told to, with two uploaded adapters."""
    server = serve(Setup(Behaviour(stepped=True)))
    upload(server, "policy", saved / "0")
    upload(server, "other", saved / "1")
    return server


def body(model: str = "policy", **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": [1000, 1001], "max_tokens": TOKENS, "ignore_eos": True, **more}


class Asked:
    """Requests that wait for the engine, each on a thread of its own, and their answers."""

    def __init__(self, live: LiveServer, pool: ThreadPoolExecutor) -> None:
        self._live, self._pool, self._asked = live, pool, 0

    def __call__(self, path: str = "/v1/completions", *, key: str = "", **fields: Any) -> Future[httpx.Response]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = self._pool.submit(httpx.post, f"{self._live.url}{path}", json=fields, headers=headers, timeout=30)
        self._asked += fields.get("n", 1)
        self._live.wait_until(lambda engine: len(engine.requests) == self._asked)
        return answer


@pytest.fixture
def ask(live: LiveServer) -> Any:
    with ThreadPoolExecutor(8) as pool:
        yield Asked(live, pool)
        live.step(200)


def choice(answer: Future[httpx.Response], index: int = 0) -> dict[str, Any]:
    told = answer.result(30)
    assert told.status_code == 200, told.text
    found: dict[str, Any] = told.json()["choices"][index]
    return found


def test_by_default_they_finish_on_their_version(live: LiveServer, saved: Path, ask: Asked) -> None:
    running = ask(**body())
    new = push(live, saved / "2").json()["pushed"]
    live.step(TOKENS)
    assert choice(running)["finish_reason"] == "length"
    assert "stop_reason" not in choice(running)
    assert running.result().json()["system_fingerprint"].endswith(digest_of(saved / "0")[:12])
    after = ask(**body())
    live.step(TOKENS)
    assert after.result(30).json()["system_fingerprint"] == new["system_fingerprint"]


def test_a_stream_that_is_told_to_end_keeps_what_it_said(live: LiveServer, saved: Path) -> None:
    asked: dict[str, Any] = {
        "logprobs": 0,
        "stream_options": {"include_usage": True},
        "extra_body": {"return_token_ids": True},
    }
    asked |= {"stream": True, "model": "policy", "prompt": [1000], "max_tokens": TOKENS}
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(live.client().completions.create, **asked)
        live.wait_until(lambda engine: engine.open_requests == 1)
        live.step(2)
        stream = opened.result(30)
    chunks = [next(iter(stream)), next(iter(stream))]
    answer = push(live, saved / "2", "running=abort").json()
    assert list(answer["pushed"]["seconds"])[-2:] == ["tell", "abort"]
    chunks += list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert [one.finish_reason for one in choices][-1] == "abort"
    assert choices[-1].stop_reason == "adapter_replaced"  # type: ignore[attr-defined]
    ids = [token for one in choices for token in one.token_ids]  # type: ignore[attr-defined]
    logprobs = [value for one in choices if one.logprobs for value in one.logprobs.token_logprobs or ()]
    assert (len(ids), len(logprobs)) == (2, 2)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2
    assert {chunk.system_fingerprint for chunk in chunks} == {f"livery-fafafafa-{digest_of(saved / '0')[:12]}"}


def test_answers_that_are_not_streamed_come_with_what_there_is(live: LiveServer, saved: Path, ask: Asked) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    several = ask("/v1/chat/completions", model="policy", messages=messages, n=2, max_tokens=TOKENS, logprobs=True)
    live.step(2)  # one each, as they take turns
    live.call(until_given(live, 2))
    push(live, saved / "2", "running=abort")
    found = [choice(several, index) for index in (0, 1)]
    assert [(one["finish_reason"], one["stop_reason"]) for one in found] == [("abort", "adapter_replaced")] * 2
    assert sum(len(one["logprobs"]["content"]) for one in found) == 2
    usage = several.result().json()["usage"]
    assert usage["completion_tokens"] == 2


def test_one_that_has_said_nothing_yet_ends_empty(live: LiveServer, saved: Path, ask: Asked) -> None:
    waiting = ask(**body())
    push(live, saved / "2", "running=abort")
    found = choice(waiting)
    assert (found["text"], found["finish_reason"]) == ("", "abort")
    usage = waiting.result().json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 0)
    live.call(live.service.adapters.settle())
    assert live.engine.open_requests == 0


def test_only_requests_on_older_versions_of_the_name_are_told(live: LiveServer, saved: Path, ask: Asked) -> None:
    """Not those of the base, of others, or who pinned the version; a sum of adapters with the name in it is."""
    first = digest_of(saved / "0")[:12]
    staying = [ask(**body(model)) for model in (BASE, "other", f"policy@{first}")]
    leaving = [ask(**body(model)) for model in ("policy", "policy+other")]
    new = push(live, saved / "2", "running=abort").json()["pushed"]
    assert [choice(one)["finish_reason"] for one in leaving] == ["abort", "abort"]
    assert live.engine.open_requests == len(staying)
    again = push(live, saved / "2", "running=abort").json()["pushed"]
    assert again["digest"] == new["digest"]
    live.step(TOKENS * len(staying))
    assert [choice(one)["finish_reason"] for one in staying] == ["length"] * 3


def test_who_got_a_later_version_is_not_told_by_an_earlier_push(live: LiveServer, saved: Path, ask: Asked) -> None:
    """The word of a push may come when a later one has its requests already."""
    old = ask(**body())
    second = push(live, saved / "2").json()
    push(live, saved / "3")
    new = ask(**body())
    told = Superseded("policy", second["digest"], second["generation"])
    live.call(said(live, told))
    assert choice(old)["finish_reason"] == "abort"
    live.step(TOKENS)
    assert choice(new)["finish_reason"] == "length"


async def said(live: LiveServer, told: Superseded) -> None:
    live.service.adapters.supersede(told)


def test_weights_that_wait_to_be_activated_end_nothing(live: LiveServer, saved: Path, ask: Asked) -> None:
    running = ask(**body())
    push(live, saved / "2", "running=abort&activate=false")
    live.step(TOKENS)
    assert choice(running)["finish_reason"] == "length"


def test_a_refused_push_ends_nothing(live: LiveServer, ask: Asked) -> None:
    running = ask(**body())
    assert push(live, b"no tensors", "running=abort").status_code == 422
    live.step(TOKENS)
    assert choice(running)["finish_reason"] == "length"


def test_a_tenant_ends_its_own_requests_alone(serve: Serve, saved: Path) -> None:
    server = serve(Setup(Behaviour(stepped=True)))
    owner, guest = server.make_key("acme", role="owner"), server.make_key("zeta", role="owner")
    headers = {"authorization": f"Bearer {owner}"}
    upload(server, "policy", saved / "0", headers=headers)
    shared = httpx.post(f"{server.url}/v1/adapters/policy/share", json={"tenant": "zeta"}, headers=headers)
    assert shared.is_success
    with ThreadPoolExecutor(2) as pool:
        ask = Asked(server, pool)
        own, others = ask(key=owner, **body()), ask(key=guest, **body("acme/policy"))
        assert push(server, saved / "2", "running=abort", name="acme/policy", **auth(guest)).status_code == 404
        assert push(server, saved / "2", "running=abort&keep=1", **auth(owner)).is_success
        assert choice(own)["finish_reason"] == "abort"
        server.step(TOKENS)
        assert choice(others)["finish_reason"] == "length"
    server.call(server.service.adapters.settle())
    assert server.management.library.store.digests() == [digest_of(saved / "2")]


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "fields", "code_in"),
    [
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": TOKENS}, lambda told: told["error"]["type"]),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": TOKENS}, lambda told: told["error"]["code"]),
    ],
)
def test_apis_that_cannot_say_so_answer_with_an_error(
    live: LiveServer, saved: Path, ask: Asked, path: str, fields: dict[str, Any], code_in: Callable[[Any], str]
) -> None:
    plain = ask(path, model="policy", **fields)
    streamed = ask(path, model="policy", stream=True, **fields)
    push(live, saved / "2", "running=abort")
    answer = plain.result(30)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert code_in(answer.json()) in ("adapter_replaced", "overloaded_error")
    assert "running=abort" in answer.text
    assert "running=abort" in streamed.result(30).text


def test_an_engine_that_drops_a_request_unasked_fails_it(live: LiveServer, ask: Asked) -> None:
    running = ask(**body())
    (request,) = live.engine.requests
    live.call(live.engine.abort(request.request_id))
    answer = running.result(30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")


def test_one_that_was_told_before_the_engine_was_asked_never_asks_it(live: LiveServer) -> None:
    """The lease is superseded while the request is being opened."""

    async def opened() -> list[str | None]:
        from livery.jobs import Job, Options  # as a route makes it

        job = Job("policy", [[1000]], Options(max_tokens=3), "req-early", "prompt")
        found = await live.service.open(job)
        lease = next(iter(live.service.adapters._running._leases["policy"]))
        lease.supersede()
        reasons = [delta.finish_reason async for delta in found.generation.deltas()]
        found.generation.close()
        return reasons

    assert live.call(opened()) == ["abort"]
    assert live.engine.requests == []


class Held:
    """Stands before something that a request waits for: the call of this number waits until it is let go."""

    def __init__(self, number: int, before: Callable[[], object] = lambda: None) -> None:
        self._left, self._before = number, before
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            assert self.go.wait(30)
        elif self._left > 0:
            self._before()


def test_one_that_still_chooses_its_versions_ends_too(
    live: LiveServer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sum one version is chosen, and the other adapter is looked up once more, as a change came in between."""
    registry = live.service.adapters.registry
    find, held = registry.find, Held(2, lambda: live.call(renewed(live)))

    def found(name: str, **how: Any) -> Any:
        if name == "other":
            held()
        return find(name, **how)

    monkeypatch.setattr(registry, "find", found)
    assert ended_while(live, saved, held, "policy+other") == "abort"


def test_one_whose_files_are_still_on_their_way_ends_too(
    live: LiveServer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, held = live.service.adapters.library, Held(1)
    bring = library.bring

    async def brought(weights: str, account: str) -> None:
        await asyncio.to_thread(held)
        await bring(weights, account)

    monkeypatch.setattr(library, "bring", brought)
    assert ended_while(live, saved, held, "policy") == "abort"


def test_who_asks_after_the_word_is_not_told(live: LiveServer, saved: Path, ask: Asked) -> None:
    """Also where a name that was deleted counts its generations anew."""
    live.call(said(live, Superseded("policy", digest_of(saved / "7"), 1000)))
    running = ask(**body())
    live.step(TOKENS)
    assert choice(running)["finish_reason"] == "length"


def ended_while(live: LiveServer, saved: Path, held: Held, model: str) -> str:
    """How an answer ends whose adapter `policy` gets new weights, and requests on older ones end, while it is held."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{live.url}/v1/completions", json=body(model), timeout=30)
        assert held.reached.wait(30)
        try:
            assert push(live, saved / "2", "running=abort").is_success
        finally:
            held.go.set()
            live.step(TOKENS)
        reason: str = choice(asked)["finish_reason"]
        return reason


async def renewed(live: LiveServer) -> None:
    live.service.adapters.renew(["somebody"])


@pytest.mark.parametrize("count", [1, 3])
def test_who_waits_for_vectors_is_told_to_come_again(live: LiveServer, saved: Path, ask: Asked, count: int) -> None:
    """What there is of a list would be of no use."""
    asked = {"model": "policy", "input": [[1000, 1001]] * count}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, f"{live.url}/v1/embeddings", json=asked, timeout=30)
        live.wait_until(lambda engine: engine.open_requests == count)
        live.step(count - 1)
        live.wait_until(lambda engine: engine.open_requests == 1)
        push(live, saved / "2", "running=abort")
        told = running.result(30)
    assert (told.status_code, told.headers["retry-after"]) == (503, "1")
    assert told.json()["error"]["code"] == "adapter_replaced"
    assert live.engine.open_requests == 0
    live.step()
    again = httpx.post(f"{live.url}/v1/embeddings", json={**asked, "input": [1000]}, timeout=30)
    assert again.is_success
    assert again.headers["x-livery-adapter"] == f"policy@{digest_of(saved / '2')[:12]}"


async def until_given(live: LiveServer, tokens: int) -> None:
    """That many tokens have left the engine."""
    async with asyncio.timeout(30):
        while live.engine._generated < tokens:
            await asyncio.sleep(0)


def test_the_official_client_reads_an_aborted_answer(live: LiveServer, saved: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        client: openai.OpenAI = live.client()
        asked = pool.submit(client.completions.create, model="policy", prompt=[1000], max_tokens=3)
        live.wait_until(lambda engine: engine.open_requests == 1)
        push(live, saved / "2", "running=abort")
        answer = asked.result(30)
    assert answer.choices[0].finish_reason == "abort"  # type: ignore[comparison-overlap]
    assert json.loads(answer.model_dump_json())["choices"][0]["stop_reason"] == "adapter_replaced"


def test_the_engine_is_asked_for_the_version_that_was_active(live: LiveServer, saved: Path, ask: Asked) -> None:
    before = ask(**body())
    push(live, saved / "2")
    after = ask(**body())
    asked: list[GenerationRequest] = live.engine.requests
    assert [request.adapter and request.adapter.digest for request in asked] == [
        digest_of(saved / "0"),
        digest_of(saved / "2"),
    ]
    live.step(2 * TOKENS)
    for one in (before, after):
        assert choice(one)["finish_reason"] == "length"
