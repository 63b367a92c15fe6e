"""The one way in: what is refused there, what it costs, and that everything taken is given back on every way out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from api.live_server import BASE, LiveServer, Serve, Setup
from livery.admission import guessed_tokens, within_limits
from livery.engine.base import EngineDead, EngineError, Grammar
from livery.engine.fake import Behaviour
from livery.grammar_check import MAX_WAITING_EACH
from livery.jobs import ChatPrompt, Job, Options, PoolingJob
from livery.lease import Caller
from livery.refusals import GenerationFailed, InvalidParameter, Overloaded, ServiceRefusal
from livery.service import GenerationService, OpenedJob
from livery.tenancy import LimitExceeded, Limits, OverShare, Principal
from livery.tenancy.gate import Gate
from livery.tenancy.schema import usage

PAYING = Principal(
    "acme",
    "user",
    "k1",
    limits=Limits(concurrent_requests=4, queued_tokens=60),
    tenant_limits=Limits(requests_per_minute=10_000, tokens_per_minute=10_000_000, max_tokens=50, n=3),
)
FREE = Principal("other", "user", "k2")
FLOOD = Principal("flood", "user", "k3")


NUMBERS = itertools.count()


def job(principal: Principal = FREE, *prompts: list[int], model: str = BASE, **options: Any) -> Job:
    chosen = Options(**{"max_tokens": 3, **options})
    return Job(model, prompts or [[3, 4]], chosen, f"req_{next(NUMBERS)}", "prompt", Caller(None, principal))


async def finish(service: GenerationService, principal: Principal) -> None:
    opened = await service.open(job(principal, [3, 4], [5] * 20, n=2))
    try:
        async for _ in opened.generation.deltas():
            pass
    finally:
        opened.generation.close()


async def leave_at_once(service: GenerationService, principal: Principal) -> None:
    opened = await service.open(job(principal, [5] * 40))
    opened.generation.close()
    opened.generation.close()


async def leave_begun(service: GenerationService, principal: Principal) -> None:
    opened = await service.open(job(principal, [3, 4], [5] * 20))
    deltas = opened.generation.deltas()
    try:
        await anext(deltas)
    finally:
        await deltas.aclose()
        opened.generation.close()


async def too_long(service: GenerationService, principal: Principal) -> None:
    await service.open(job(principal, [5] * 300))


async def nobody(service: GenerationService, principal: Principal) -> None:
    await service.open(job(principal, model="nobody"))


async def given_up(service: GenerationService, principal: Principal) -> None:
    """Cancelled while its adapter is looked for."""
    opening = asyncio.create_task(service.open(job(principal, model="nobody")))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)


async def vectors(service: GenerationService, principal: Principal) -> None:
    asked = PoolingJob(BASE, "embed", [[3], [4, 5]], job().request_id, caller=Caller(None, principal))
    opened = await service.pool(asked)
    try:
        await opened.answer.vectors()
    finally:
        opened.answer.close()


async def no_vectors(service: GenerationService, principal: Principal) -> None:
    await service.pool(PoolingJob(BASE, "classify", [[3]], job().request_id, caller=Caller(None, principal)))


async def tokens(service: GenerationService, principal: Principal) -> None:
    await service.tokenize(job(principal), strings=True)
    await service.tokenizer_facts("", Caller(None, principal))
    await service.detokenize("", [1 << 30], Caller(None, principal))


WAYS: list[Callable[[GenerationService, Principal], Awaitable[None]]] = [
    *(finish, leave_at_once, leave_begun, too_long, nobody, given_up, vectors, no_vectors, tokens),
]


@pytest.fixture(scope="module")
def narrow(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = LiveServer(Setup(max_open=16, max_queued_tokens=200), tokenizer, tmp_path_factory.mktemp("narrow"))
    server.start()
    yield server
    server.stop()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ways=st.lists(st.tuples(st.sampled_from(range(len(WAYS))), st.booleans()), min_size=1, max_size=12),
    fails=st.booleans(),
)
def test_everything_is_given_back_on_every_way_out(
    narrow: LiveServer, ways: list[tuple[int, bool]], fails: bool
) -> None:
    service = narrow.service

    async def together() -> list[object]:
        narrow.engine.behaviour.fail_after = 1 if fails else None
        asked = (WAYS[way](service, PAYING if pays else FREE) for way, pays in ways)
        return list(await asyncio.gather(*asked, return_exceptions=True))

    known = (ServiceRefusal, EngineError, LimitExceeded, OverShare, type(None))
    found = narrow.call(together())
    assert all(isinstance(one, known) for one in found), found
    assert_nothing_is_held(service)


def assert_nothing_is_held(service: GenerationService) -> None:
    gate = service.admission.gate
    assert isinstance(gate, Gate)
    room = gate.room
    assert (room.sequences.held, room.tokens.held, len(room)) == (0, 0, 0)
    for account in gate.limiter._accounts.values():
        assert (account.concurrent, account.queued, account.tokens.reserved) == (0, 0, 0)
    assert not service.admission._open


@pytest.mark.parametrize(
    ("broken", "path"),
    [
        ("livery.generation.StopSearch", "/v1/completions"),
        ("livery.service.labels_of", "/v1/embeddings"),
        ("livery.api.openai.Envelope", "/v1/completions"),
        ("livery.api.openai.EventStream", "/v1/completions"),
    ],
)
def test_an_answer_that_cant_be_made_keeps_nothing(
    narrow: LiveServer, monkeypatch: pytest.MonkeyPatch, broken: str, path: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("as by a defect")

    monkeypatch.setattr(broken, fails)
    body = {"model": BASE, "prompt": [3, 4], "stream": True} if "completions" in path else {"input": [3, 4]}
    answer = httpx.post(f"{narrow.url}{path}", json=body, timeout=30)
    assert answer.status_code == 500, answer.text
    assert_nothing_is_held(narrow.service)


def test_what_one_request_may_ask_is_bounded_by_the_lower_limit(narrow: LiveServer) -> None:
    for options, param in (({"max_tokens": 51}, "max_tokens"), ({"n": 4}, "n"), ({"best_of": 4}, "best_of")):
        with pytest.raises(InvalidParameter, match="the tenant 'acme' may ask for at most") as refused:
            narrow.call(narrow.service.open(job(PAYING, **options)))
        assert refused.value.param == param
    before = len(narrow.engine.requests)
    narrow.engine.behaviour.fail_after = None
    narrow.call(_run(narrow.service, job(PAYING, max_tokens=None)))
    assert narrow.engine.requests[before].sampling.max_tokens == 50, "a default is nobody's wish: it is moved within"


@pytest.mark.parametrize(("usual", "given"), [(None, 50), (80, 50), (30, 30)])
def test_an_answers_length_by_default_is_within_the_limit_too(usual: int | None, given: int) -> None:
    asked = within_limits(job(PAYING, max_tokens=None, default_max_tokens=usual))
    assert asked.options.default_max_tokens == given


async def _run(service: GenerationService, asked: Job) -> None:
    opened = await service.open(asked)
    async for _ in opened.generation.deltas():
        pass
    opened.generation.close()


def test_new_grammars_beyond_a_tenants_own_are_counted_as_its_limit(serve: Serve) -> None:
    server = serve()
    _, admin = server.make_key("other"), server.make_key("default", role="admin")

    async def together() -> list[object]:
        asked = (job(FREE, grammar=Grammar("regex", f"a{{{index + 1}}}")) for index in range(MAX_WAITING_EACH + 2))
        found = await asyncio.gather(*map(server.service.open, asked), return_exceptions=True)
        for opened in found:
            if isinstance(opened, OpenedJob):
                opened.generation.close()
        return list(found)

    assert [type(one) for one in server.call(together())].count(LimitExceeded) == 2
    text = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {admin}"}).text
    assert 'livery_tenant_throttled_total{reason="limit",tenant="other"} 2.0' in text
    assert_nothing_is_held(server.service)


def test_a_flood_fills_the_room_for_nobody_else(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), max_open=18))

    async def flood() -> list[Any]:
        asked = (server.service.open(job(FLOOD)) for _ in range(30))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    found = server.call(flood())
    assert [type(one) for one in found[16:]] == [OverShare] * 14
    server.call(server.service.open(job(FREE)))
    with pytest.raises(OverShare):
        server.call(server.service.open(job(FREE)))
    server.call(server.service.open(job(PAYING)))  # the first to come leaves room for the next
    with pytest.raises(Overloaded):
        server.call(server.service.open(job(FREE)))
    found[0].generation.close()
    with pytest.raises(OverShare):
        server.call(server.service.open(job(FLOOD)))


def test_refusing_asks_nobody_and_encodes_nothing(serve: Serve) -> None:
    server = serve(Setup(max_open=0))
    asked: list[str] = []
    server.service.adapters.lease = lambda name, caller: asked.append(name)  # type: ignore[assignment,method-assign,func-returns-value]
    body = {"model": "some-adapter", "messages": [{"role": "user", "content": "word " * 300_000}]}
    for path in ("/v1/chat/completions", "/tokenize"):
        answer = httpx.post(f"{server.url}{path}", json=body, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    assert asked == []


def test_prompts_wait_until_their_answers_begin(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True)))
    waiting = server.gate.room.tokens

    async def watched() -> list[int]:
        opened = await server.service.open(job(FREE, [3] * 30, [4] * 20, n=2, max_tokens=1))
        deltas = opened.generation.deltas()
        found = [waiting.held]
        first = asyncio.ensure_future(anext(deltas))
        await server.engine.wait_until(lambda engine: engine.open_requests == 4)
        server.engine.step()  # for the first answer to the first prompt
        await first
        found.append(waiting.held)
        server.engine.step(3)
        async for _ in deltas:
            pass
        found.append(waiting.held)
        opened.generation.close()
        return found

    assert server.call(watched()) == [50, 20, 0]


@pytest.mark.parametrize(("reads", "counted"), [(None, 42), (10, 12), (0, 0)])
def test_what_was_read_of_a_prompt_whose_client_leaves_before_its_answer_counts(
    serve: Serve, reads: int | None, counted: int
) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True, reads=reads)))

    async def left() -> None:
        opened = await server.service.open(job(PAYING, [5] * 40, [6] * 2, n=2))
        deltas = opened.generation.deltas()
        first = asyncio.ensure_future(anext(deltas))
        await server.engine.wait_until(lambda engine: engine.open_requests == 4)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await deltas.aclose()
        opened.generation.close()
        never_asked = await server.service.open(job(PAYING, [5] * 30))
        never_asked.generation.close()
        await server.flusher.flush()

    server.call(left())
    assert used(server) == ("acme", counted, 0, 0)
    assert_nothing_is_held(server.service)


@pytest.mark.parametrize(
    ("behaviour", "counted"),
    [(Behaviour(fail_after=0), 62), (Behaviour(fail_after=0, reads=10), 22), (Behaviour(die_after=0), 0)],
)
def test_what_was_read_for_answers_that_fail_counts_and_what_a_lost_engine_read_doesnt(
    serve: Serve, behaviour: Behaviour, counted: int
) -> None:
    """As under an adapter whose numbers overflow, which fails each of its requests once their prompt is computed."""
    server = serve(Setup(behaviour=behaviour))
    payer = replace(PAYING, limits=Limits(), tenant_limits=Limits(tokens_per_minute=1000))

    async def failed() -> int:
        texts = await server.service.open(job(payer, [5] * 40, [7] * 2, n=2))
        vectors = await server.service.pool(
            PoolingJob(BASE, "embed", [[6] * 20], job().request_id, caller=Caller(None, payer))
        )
        for answer in (anext(texts.generation.deltas()), vectors.answer.vectors()):
            with pytest.raises((GenerationFailed, EngineDead)):
                await answer
        texts.generation.close()
        vectors.answer.close()
        await server.flusher.flush()
        return server.gate.limiter.rates(payer)["tokens"].remaining

    assert 1000 - server.call(failed()) == counted
    assert_nothing_is_held(server.service)
    with server.tenants.database.read() as database:
        rows = database.execute(select(usage.c.prompt_tokens, usage.c.completion_tokens)).all()
    assert [sum(column) for column in zip(*rows, strict=True)] == [counted, 0]


def test_of_what_was_read_what_was_found_is_told_apart(serve: Serve) -> None:
    """Of requests for vectors too."""
    server = serve(Setup(behaviour=Behaviour(stepped=True, reads=20)))
    payer = replace(PAYING, limits=Limits())

    async def given_up(service: GenerationService) -> None:
        server.engine.step()
        await _run(service, job(payer, [5] * 16, max_tokens=1))  # which the next ones find
        opened = await service.open(job(payer, [5] * 40))
        caller = Caller(None, payer)
        pooled = await service.pool(PoolingJob(BASE, "embed", [[5] * 40], job().request_id, caller=caller))
        waiting = [
            asyncio.ensure_future(anext(opened.generation.deltas())),
            asyncio.ensure_future(pooled.answer.vectors()),
        ]
        await server.engine.wait_until(lambda engine: engine.open_requests == 2)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        opened.generation.close()
        pooled.answer.close()
        await server.flusher.flush()

    server.call(given_up(server.service))
    assert used(server) == ("acme", 16 + 20 + 20, 16 + 20, 1), (
        "a block of the first prompt, and all that was read of it again"
    )
    assert_nothing_is_held(server.service)


def used(server: LiveServer) -> tuple[str, int, int, int]:
    """By the one tenant that used anything: tokens of prompts, of these found, and of answers."""
    (line,) = httpx.get(f"{server.url}/v1/usage", params={"by": "tenant"}, timeout=30).json()["data"]
    return line["tenant"], line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]


def test_the_guess_of_a_long_conversation_isnt_cut_short() -> None:
    """What is guessed too low is encoded before it is refused."""
    long = ChatPrompt([{"role": "user", "content": "word " * 1400} for _ in range(290)])
    assert 290 * 7000 // 4 <= guessed_tokens([long], 1_000_000) < 290 * 7100 // 4
    assert guessed_tokens([long, long], 2048) == 2 * 2048
