"""Which adapters are kept for vLLM, and for how long: without vLLM, of which what it is told is written down."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from safetensors import SafetensorError

from engine.told_vllm import ToldVllm, ref
from livery.engine.base import NOBODY, AdapterLoadFailed, EngineDead
from livery.engine.vllm_process import CallFailed
from livery.engine.vllm_watch import SlotCounts, StepCounts
from livery.metrics import Metrics, Snapshot, Standing
from service.test_metrics import INFO


async def test_what_a_request_comes_for_while_another_makes_room_stays(tmp_path: Path) -> None:
    """vLLM ends with all its requests at the first one whose directory is gone."""
    told = ToldVllm(tmp_path, host=1)
    adapters = told.adapters
    for name in ("a", "b"):
        await adapters.hold(ref(name))
    for name in ("a", "b"):
        await adapters.release(name)
    goes_on = told.hold_up("remove_lora")
    third = asyncio.create_task(adapters.hold(ref("c")))
    await told.reached["remove_lora"].wait()
    assert adapters.held(ref("a")) is None, "it is on its way out"
    taken = adapters.held(ref("b"))
    goes_on.set()
    await third
    assert taken is not None and taken.lora_int_id in told.known
    assert told.folders == {"b", "c"}


async def test_one_that_is_unloaded_while_its_loading_makes_room_is_gone(tmp_path: Path) -> None:
    """It is there already, though whoever loads it waits still."""
    told = ToldVllm(tmp_path, host=1)
    adapters = told.adapters
    await adapters.load(ref("a"), NOBODY)
    goes_on = told.hold_up("remove_lora")
    proven = asyncio.create_task(adapters.load(ref("b"), NOBODY))
    await told.reached["remove_lora"].wait()
    dropped = asyncio.create_task(adapters.unload("b"))
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.gather(proven, dropped)
    assert not told.known and not told.folders


async def test_who_comes_for_one_on_its_way_out_has_it_read_again(tmp_path: Path) -> None:
    """Also where it leaves as soon as it is there: that loading's outcome is nobody's any more."""
    told = ToldVllm(tmp_path, host=2)
    adapters = told.adapters
    comes, goes = told.hold_up("add_lora"), told.hold_up("remove_lora")
    first = asyncio.create_task(adapters.hold(ref("a")))
    await told.reached["add_lora"].wait()
    await adapters.unload("a")
    first.cancel()
    await asyncio.wait({first})
    comes.set()
    await told.reached["remove_lora"].wait()
    later = asyncio.create_task(adapters.hold(ref("a")))
    await asyncio.sleep(0)
    goes.set()
    lora = await later
    await asyncio.gather(*adapters._loads)
    assert told.known == {lora.lora_int_id: "livery@a"}
    assert Path(lora.path).is_dir() and told.folders == {"a"}


@pytest.mark.parametrize("comes_again", [False, True])
async def test_one_unloaded_while_it_is_loading_is_forgotten_unless_it_is_asked_for_again(
    tmp_path: Path, comes_again: bool
) -> None:
    """Also where the request that it was loading for is gone before it is there."""
    told = ToldVllm(tmp_path, host=2)
    adapters = told.adapters
    goes_on = told.hold_up("add_lora")
    first = asyncio.create_task(adapters.hold(ref("a")))
    await told.reached["add_lora"].wait()
    await adapters.unload("a")
    first.cancel()
    await asyncio.wait({first})
    loads = set(adapters._loads)
    again = asyncio.create_task(adapters.hold(ref("a"))) if comes_again else None
    await asyncio.sleep(0)  # it has joined those that wait
    goes_on.set()
    await asyncio.gather(*loads, *([again] if again else []))
    assert loads and list(told.known.values()) == ["livery@a"] * comes_again
    assert told.folders == ({"a"} if comes_again else set())
    assert adapters.running == (("a",) if comes_again else ())


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("write", RuntimeError("[enforce fail] DefaultCPUAllocator"), "unexpected RuntimeError"),
        ("write", MemoryError(), "unexpected MemoryError"),
        ("write", SafetensorError("HeaderTooLarge at /srv/x"), "unexpected SafetensorError"),
        ("write", FileNotFoundError(2, "No such file or directory"), "No such file"),
        ("add_lora", CallFailed("shape mismatch"), "vLLM refuses adapter a"),
        ("livery_unapplied", CallFailed("no such method"), "unexpected CallFailed"),
    ],
)
async def test_whatever_goes_wrong_with_one_is_told_to_who_wants_it_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, error: Exception, words: str
) -> None:
    told = ToldVllm(tmp_path, host=2)
    adapters = told.adapters
    told.fails[method] = error
    with pytest.raises(AdapterLoadFailed, match=words) as failed:
        await adapters.hold(ref("a"))
    assert "/srv" not in str(failed.value), "the words of libraries hold paths: they are the log's"
    assert not isinstance(error, SafetensorError) or "HeaderTooLarge" in caplog.text
    assert not told.folders and not told.known and not adapters.running and not adapters.waited_for
    assert (await adapters.hold(ref("a"))).lora_int_id in told.known, "the next one may fare better"


async def test_an_engine_that_is_lost_while_it_loads_is_not_the_adapters_fault(tmp_path: Path) -> None:
    told = ToldVllm(tmp_path, host=2)
    told.fails["add_lora"] = EngineDead("its process ended")
    with pytest.raises(EngineDead, match="its process ended"):
        await told.adapters.hold(ref("a"))
    assert not told.folders and not told.adapters.running


async def test_one_that_is_forgotten_while_it_is_pinned_is_pinned_when_it_comes_back(tmp_path: Path) -> None:
    told = ToldVllm(tmp_path, host=3)
    adapters = told.adapters
    await adapters.load(ref("a"), NOBODY)
    goes_on = told.hold_up("pin_lora")
    keeping = asyncio.create_task(adapters.keep(("a",)))
    await told.reached["pin_lora"].wait()
    await adapters.unload("a")
    goes_on.set()
    await keeping
    assert not told.known
    lora = await adapters.hold(ref("a"))
    await adapters.keep(("a",))
    assert told.pins == {lora.lora_int_id}


async def test_what_cannot_be_pinned_is_no_reason_to_pin_no_other(tmp_path: Path) -> None:
    told = ToldVllm(tmp_path, host=3, slots=3)
    for name in ("a", "b"):
        await told.adapters.load(ref(name), NOBODY)
    told.fails["pin_lora"] = CallFailed("no slot")
    await told.adapters.keep(("a", "b"))
    assert {told.known[number] for number in told.pins} == {"livery@b"}
    await told.adapters.keep(("b", "a"))
    assert {told.known[number] for number in told.pins} == {"livery@a", "livery@b"}


async def test_a_pin_whose_outcome_nobody_waited_for_is_let_go_like_any_other(tmp_path: Path) -> None:
    told = ToldVllm(tmp_path, host=3)
    adapters = told.adapters
    await adapters.load(ref("a"), NOBODY)
    goes_on = told.hold_up("pin_lora")
    keeping = asyncio.create_task(adapters.keep(("a",)))
    await told.reached["pin_lora"].wait()
    told.pins.add(1)  # vLLM has done it, and its answer is on its way
    letting_go = asyncio.create_task(adapters.keep(()))
    await asyncio.gather(keeping, letting_go, return_exceptions=True)
    goes_on.set()
    assert not told.pins and told.known


async def test_what_vllm_swaps_in_its_slots_is_counted_as_it_is_seen(tmp_path: Path) -> None:
    told = ToldVllm(tmp_path, host=8)
    adapters, slots = told.adapters, told.adapters.slots
    number = {name: (await adapters.hold(ref(name))).lora_int_id for name in ("a", "b", "c")}
    assert (slots.loads, slots.from_host, slots.evictions) == (3, 0, 0)
    told.device = {number["b"], number["c"]}  # there were two slots
    assert await adapters.residents() == (("b", "c"), ("a",))
    assert (slots.loads, slots.from_host, slots.evictions) == (3, 0, 1)
    for name in ("a", "b"):  # vLLM has both, one of them in host memory
        assert adapters.held(ref(name)) is not None
    told.device = {number["a"], number["b"]}
    for _ in range(2):
        await adapters.residents()
    assert (slots.loads, slots.from_host, slots.evictions) == (4, 1, 2)
    for name, uses in (("a", 2), ("b", 2), ("c", 1)):
        for _ in range(uses):
            await adapters.release(name)
        await adapters.unload(name)
    assert slots.evictions == 4, "what was in no slot any more left none"
    use = {one.digest: (one.loads, one.evictions, one.hits, one.misses) for one in slots.log.told()}
    assert use == {"a": (2, 2, 0, 2), "b": (1, 1, 1, 1), "c": (1, 1, 0, 1)}


async def test_what_comes_while_it_is_looked_did_not_leave(tmp_path: Path) -> None:
    told = ToldVllm(tmp_path, host=8)
    goes_on = told.hold_up("livery_adapters")
    looking = asyncio.create_task(told.adapters.residents())
    await told.reached["livery_adapters"].wait()
    number = (await told.adapters.hold(ref("a"))).lora_int_id
    told.device = set()  # as it was when vLLM's workers looked
    goes_on.set()
    await looking
    told.device = {number}
    await told.adapters.residents()
    slots = told.adapters.slots
    assert (slots.loads, slots.from_host, slots.evictions) == (1, 0, 0)


def test_what_vllm_does_not_tell_has_no_series() -> None:
    stats = StepCounts().stats(8, SlotCounts(), ())
    text = Metrics("base", INFO).render(Snapshot(stats, Standing(1))).decode()
    assert "livery_prefix_cache_blocks" not in text and "livery_prefix_cache_evictions" not in text
    for name in (
        "livery_adapter_loads_total",
        "livery_adapter_loads_from_host_total",
        "livery_adapter_evictions_total",
    ):
        assert f"{name} 0.0" in text
