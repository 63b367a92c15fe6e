"""Tenants and slots on a real vLLM: whose turn it is, what a tenant's adapters may take, and requests given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from engine_vllm.both import adapter, answer, ask, check_greedy, config, ids, tokens_of, vllm_engine
from livery.engine.base import Asker
from livery.engine.codes import ADAPTER_TOO_LARGE, DEADLINE_EXCEEDED
from livery.engine.vllm import VllmEngine

pytestmark = pytest.mark.vllm

PROMPT = "The weather today is"
RUNNING = config().max_running


@pytest_asyncio.fixture(scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    running = vllm_engine()
    await running.start()
    yield running
    await running.stop()


async def test_requests_beside_a_pinned_adapter_share_the_slots_that_are_left(engine: VllmEngine) -> None:
    """Two slots, one of them pinned: vLLM itself would be asked for three in one step, and fail all of them."""
    await engine.load_adapter(adapter("pirate"))
    await engine.keep_adapters((adapter("pirate").digest,))
    names = ["json", "sentiment", "pirate", "sql"]
    answers = await asyncio.gather(*(answer(engine, ask(f"beside-{name}", PROMPT, adapter(name))) for name in names))
    for name, deltas in zip(names, answers, strict=True):
        check_greedy(name, ids(PROMPT), tokens_of(deltas))
    assert adapter("pirate").digest in (await engine.stats()).resident_adapters
    await engine.keep_adapters(())


async def test_an_adapter_is_pinned_once_running_requests_leave_it_a_slot(engine: VllmEngine) -> None:
    for name in ("json", "sentiment", "pirate"):
        await engine.load_adapter(adapter(name))
    streams = [engine.generate(ask(f"long-{name}", PROMPT, adapter(name), max_tokens=48)) for name in ("json", "sql")]
    found = [list((await anext(stream)).token_ids) for stream in streams]
    await engine.keep_adapters((adapter("pirate").digest,))
    for stream, tokens, name in zip(streams, found, ("json", "sql"), strict=True):
        async for delta in stream:
            tokens += delta.token_ids
        check_greedy(name, ids(PROMPT), tokens)
    for name in ("sentiment", "json"):
        await answer(engine, ask(f"then-{name}", PROMPT, adapter(name)))
        assert adapter("pirate").digest in (await engine.stats()).resident_adapters
    await engine.keep_adapters(())


async def test_a_flood_of_one_tenant_delays_itself_and_not_another(engine: VllmEngine) -> None:
    ended: list[str] = []

    async def asked(name: str, tenant: str) -> None:
        await answer(engine, ask(name, PROMPT, max_tokens=16, _tenant=tenant))
        ended.append(name)

    flood = [asyncio.create_task(asked(f"flood-{number}", "flood")) for number in range(5 * RUNNING)]
    await asyncio.sleep(0)
    quiet = asyncio.create_task(asked("quiet", "quiet"))
    await quiet
    stats = await engine.stats()
    standings = {one.tenant: one for one in stats.figures.tenants}
    assert standings["flood"].waiting > 0 and stats.waiting >= standings["flood"].waiting
    await asyncio.gather(*flood)
    assert ended.index("quiet") <= 2 * RUNNING + 1, "it had the first place that came free, but for those handed over"


async def test_requests_that_wait_for_their_turn_can_be_given_up(engine: VllmEngine) -> None:
    long = [engine.generate(ask(f"long-{number}", PROMPT, max_tokens=400)) for number in range(RUNNING + 1)]
    tasks = [asyncio.ensure_future(anext(stream)) for stream in long]
    await tasks[0]
    waiting = asyncio.create_task(answer(engine, ask("aborted", PROMPT)))
    late = asyncio.create_task(answer(engine, ask("late", PROMPT, _deadline_s=0.2)))
    closed = asyncio.create_task(answer(engine, ask("closed", PROMPT)))
    await asyncio.sleep(0)
    assert (await engine.stats()).waiting >= 3
    await engine.abort("aborted")
    closed.cancel()
    (delta,) = await waiting
    assert (delta.finish_reason, delta.token_ids) == ("abort", [])
    (delta,) = await late
    assert (delta.finish_reason, delta.code) == ("error", DEADLINE_EXCEEDED)
    for task, stream in zip(tasks, long, strict=True):
        task.cancel()
        await asyncio.wait({task})
        await stream.aclose()  # type: ignore[attr-defined]
    assert len(tokens_of(await answer(engine, ask("after", PROMPT)))) == 12
    stats = await engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)


async def test_a_tenants_adapters_take_no_more_of_the_device_than_they_may(engine: VllmEngine) -> None:
    for name in ("pirate", "sql", "json", "sentiment"):  # which are there for others too, from what was asked before
        await engine.unload_adapter(adapter(name).digest)
    await engine.load_adapter(adapter("sentiment"))
    stats, slots = await engine.stats(), 2
    slot = engine._info.adapter_memory_bytes // slots
    assert slot > 0 and (stats.adapter_bytes, stats.resident_adapters) == (slot, (adapter("sentiment").digest,))
    for number, name in enumerate(("pirate", "sql", "pirate")):
        limited = ask(f"limited-{number}", PROMPT, adapter(name), _tenant="small", _resident_bytes=2 * slot - 1)
        check_greedy(name, ids(PROMPT), tokens_of(await answer(engine, limited)))
    resident = (await engine.stats()).resident_adapters
    assert adapter("pirate").digest in resident and adapter("sql").digest not in resident
    too_much = ask("too-much", PROMPT, adapter("pirate"), _tenant="tiny", _resident_bytes=slot - 1)
    (delta,) = await answer(engine, too_much)
    assert (delta.finish_reason, delta.code) == ("error", ADAPTER_TOO_LARGE)
    assert f"takes {slot} bytes" in (delta.error or "")
    await engine.load_adapter(adapter("json"), Asker("tiny", 1.0, slot - 1))
    stats = await engine.stats()
    assert adapter("json").digest in stats.host_adapters and stats.host_adapter_bytes > 0


async def test_steps_are_timed_and_pauses_are_none(engine: VllmEngine) -> None:
    before = (await engine.stats()).figures.step_seconds
    loop = asyncio.get_running_loop()
    spent = 0.0
    for number in range(3):
        began = loop.time()
        await answer(engine, ask(f"timed-{number}", PROMPT, max_tokens=8))
        spent += loop.time() - began
        await engine.ready()
    after = (await engine.stats()).figures.step_seconds
    assert sum(after.counts) - sum(before.counts) >= 3 * 8
    assert 0 < after.total - before.total <= spent
