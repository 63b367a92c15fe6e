"""Which adapters are kept for vLLM, and for how long: without vLLM, of which what it is told is written down."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engine.told_vllm import ToldVllm, ref


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
